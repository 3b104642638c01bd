"""The command's table of contents, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import sys

from petl_ray.cli.quiet import hush

hush()

import typer  # noqa: E402 - after hush, so that whatever it pulls in is quiet

from petl_ray import __version__  # noqa: E402
from petl_ray.cli import adapters, plans, running, runs, schedules, serving, submitting  # noqa: E402
from petl_ray.cli.screen import complain, print_json, told_of  # noqa: E402
from petl_ray.errors import PetlRayError  # noqa: E402

app = typer.Typer(
    name="petl-ray",
    help="One frozen base, many adapters: durable pipelines on Ray for parameter-efficient transfer learning.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(running.run)
app.command("validate")(plans.validate)
app.command("plan")(plans.plan)
app.command("schema")(plans.schema)
app.command("serve")(serving.serve)
app.command("predict")(serving.predict)
app.command("submit")(submitting.submit)
app.command("scheduler")(schedules.scheduler)
app.add_typer(runs.app, name="runs")
app.add_typer(adapters.app, name="adapters")
app.add_typer(schedules.app, name="schedule")


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version."),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; exits with 0, or with the code of the error's kind (130 when interrupted)."""
    try:
        app()
    except PetlRayError as error:
        complain(str(error))
        if "--json" in sys.argv[1:]:
            print_json({"error": told_of(error)})
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        cause = leaving.__context__.__cause__ if leaving.__context__ else None
        if isinstance(cause, KeyboardInterrupt):
            complain("Interrupted. What was recorded stays; the same command goes on from there.")
        raise
