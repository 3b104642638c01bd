"""`petl-ray adapters`: what is registered, what a name means, why, and moving it by hand."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from petl_ray.cli.options import AsJson, HomePath
from petl_ray.cli.screen import moment, print_json, remark, show, size

app = typer.Typer(help="List, promote, roll back and explain adapters.", no_args_is_help=True)

Task = Annotated[str, typer.Argument(help="The task.", show_default=False)]
Actor = Annotated[str, typer.Option("--actor", help="Who asks.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in a sentence; kept for ever.")]


@app.command("ls")
def ls(
    task: Annotated[str | None, typer.Argument(help="Only this task.")] = None,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Every version that was judged; the champion is the one a task's name means."""
    from petl_ray.orchestration.home import Home
    from petl_ray.registry import adapters

    rows = adapters.ls(Home.at(home).database_url, task)
    if not as_json:
        rows = [{**row, "size": size(row["size_bytes"]), "judged": moment(row["judged_at"])} for row in rows]
    columns = ["task", "version", "champion", "status", "method", "size", "headline", "adapter_digest", "judged"]
    show(rows, columns, as_json, "No adapter is registered yet: `petl-ray run` a plan.")


@app.command("history")
def history(
    task: Annotated[str | None, typer.Argument(help="Only this task.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 50,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Every promotion, refusal, rollback and proposal, newest first."""
    from petl_ray.orchestration.home import Home
    from petl_ray.registry import adapters

    rows = adapters.history(Home.at(home).database_url, task, limit)
    if not as_json:
        rows = [{**row, "when": moment(row["at"]), "action": _done(row), "reason": _given(row)} for row in rows]
    columns = ["when", "task", "action", "version", "previous_version", "actor", "run_id", "reason"]
    show(rows, columns, as_json, "Nothing has been judged yet.")


@app.command("why")
def why(
    task: Task,
    version: Annotated[int | None, typer.Argument(help="The version (default: the champion, or the newest).")] = None,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Why a version was promoted or refused: sentences and figures; and which run of which plan made it from what."""
    from petl_ray.orchestration.home import Home
    from petl_ray.registry import adapters

    rows = adapters.why(Home.at(home).database_url, task, version)
    if as_json:
        print_json(rows)
        return
    if not any(row["action"] in ("promote", "rollback") for row in rows) and version is None:
        remark(f"{task} has no champion; this is what was said of its newest version.")
    for row in rows:
        typer.echo(f"{moment(row['at'])}  {_done(row)} {row['task']} version {row['version']} by {row['actor']}")
        for reason in row["reasons"]:
            typer.echo(f"  {reason}")
        for name, value in row["lineage"].items():
            typer.echo(f"  {name.replace('_', ' ')}: {value}")


@app.command("promote")
def promote(
    task: Task,
    version: Annotated[int, typer.Argument(help="The version.", show_default=False)],
    reason: Reason,
    actor: Actor = getpass.getuser(),
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion by hand, past the gate. Gateways follow within seconds."""
    from petl_ray.orchestration.home import Home
    from petl_ray.registry import adapters

    where = Home.at(home)
    row = adapters.promote(where.database_url, where.tracking_url, task, version, actor=actor, reason=reason)
    _moved(row, as_json)


@app.command("rollback")
def rollback(
    task: Task,
    reason: Reason,
    to: Annotated[
        int | None, typer.Option("--to", help="A version that was champion (default: the one before).")
    ] = None,
    actor: Actor = getpass.getuser(),
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier champion the champion again."""
    from petl_ray.orchestration.home import Home
    from petl_ray.registry import adapters

    where = Home.at(home)
    row = adapters.rollback(where.database_url, where.tracking_url, task, to, actor=actor, reason=reason)
    _moved(row, as_json)


@app.command("reconcile")
def reconcile(home: HomePath = None, as_json: AsJson = False) -> None:
    """Make MLflow's aliases say what the promotion rows say; an alias moved by a foreign hand is kept as a proposal."""
    from petl_ray.orchestration.home import Home
    from petl_ray.registry import adapters

    where = Home.at(home)
    repairs = [repair.facts() for repair in adapters.reconcile(where.database_url, where.tracking_url)]
    if as_json:
        print_json(repairs)
    else:
        remark(f"{len(repairs)} aliases repaired.")


def _done(row: dict[str, Any]) -> str:
    """The action of a row; `kept` where a name was given what it meant already."""
    return str(row["action"]) if row["moved"] or row["action"] not in ("promote", "rollback") else "kept"


def _given(row: dict[str, Any]) -> str:
    """The reason that a person gave; the gate's sentences are told by `why`."""
    return "; ".join(row["reasons"]) if row["by_hand"] else ""


def _moved(row: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(row)
    else:
        remark(f"{row['task']}: version {row['version']} is the champion ({row['action']}).")
