"""`petl-ray runs`: what ran, what runs, and taking it up, stopping it or reading what it said."""

from __future__ import annotations

from typing import Annotated

import typer

from petl_ray.cli.options import AsJson, HomePath
from petl_ray.cli.screen import moment, print_json, print_table, remark, show, told

app = typer.Typer(help="List, show, resume, cancel runs; read their logs; adopt outcomes.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run's id, or an unambiguous beginning of it.", show_default=False)]


@app.command("ls")
def ls(
    limit: Annotated[int, typer.Option(help="At most so many.")] = 50, home: HomePath = None, as_json: AsJson = False
) -> None:
    """All runs, newest first; RESUMABLE ones were left behind by their driver."""
    from petl_ray.orchestration import Home, runs

    rows = runs.ls(Home.at(home), limit)
    if not as_json:
        rows = [
            {
                **row,
                "started": moment(row["started_at"]),
                "ended": moment(row["ended_at"]),
                "steps": _counted(row["steps"]),
            }
            for row in rows
        ]
    show(
        rows,
        ["id", "plan", "pipeline", "state", "owner", "started", "ended", "steps"],
        as_json,
        "No run yet: petl-ray run PLAN.",
    )


@app.command("show")
def details(run_id: RunId, home: HomePath = None, as_json: AsJson = False) -> None:
    """One run: its state, every step with its outcome, and why it was computed."""
    from petl_ray.orchestration import Home, runs

    row = runs.show(Home.at(home), run_id)
    if as_json:
        print_json(row)
        return
    typer.echo(
        f"{row['id']}  {row['state']}  {row['plan']}  {row['pipeline']}  {row['owner']}  {moment(row['started_at'])}"
    )
    if row["error"]:
        typer.echo(f"  {row['error'].get('message')}")
    if note := (row["summary"] or {}).get("note"):
        typer.echo(f"  {note}")
    if not row["steps"]:
        return
    steps = []
    for step in row["steps"]:
        began, ended = step["started_at"], step["ended_at"]
        seconds = f"{ended - began:.1f}" if began and ended and not step["hit"] else ""
        state = "found" if step["hit"] else step["state"]
        steps.append([step["label"], state, seconds, step["attempts"], told(step["outcome_digest"]), step.get("why")])
    print_table(["step", "state", "s", "attempts", "outcome", "why"], steps)
    for step in row["steps"]:
        if step["error"]:
            typer.echo(f"{step['state']} {step['label']}: {step['error'].get('message')}")


@app.command("resume")
def resume(
    run_id: RunId,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Elsewhere than before.")] = None,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Take up a run from its stored lock; what was recorded is not done again."""
    from petl_ray.cli.ending import farewell
    from petl_ray.cli.results import serve_command, tell
    from petl_ray.cli.watching import Watch
    from petl_ray.cli.where import placement
    from petl_ray.orchestration import Home, Placement, runs
    from petl_ray.scheduling.launch import resume as take_up

    place = Home.at(home)
    stored = runs.resume_info(place, run_id)
    where = placement(cluster) if cluster else Placement.model_validate(stored["placement"])
    with farewell(where), Watch(silent=as_json) as watch:
        summary = take_up(stored["locked"], stored["id"], place, where, watch)
        ends = summary.endpoint and where.ray == "local"
        tell(summary, watch, as_json, serve_command(str(summary.endpoint), None, home=home) if ends else None)
    if not summary.succeeded:
        raise typer.Exit(summary.exit_code)


@app.command("cancel")
def cancel(run_id: RunId, home: HomePath = None, as_json: AsJson = False) -> None:
    """Ask a run to stop at its next breath; what it recorded stays."""
    from petl_ray.orchestration import Home, runs

    said = runs.cancel(Home.at(home), run_id)
    if as_json:
        print_json(said)
    else:
        remark(f"{said['id']}: {'asked to stop' if said['state'] == 'RUNNING' else 'cancelled'}.")


@app.command("logs")
def logs(
    run_id: RunId,
    step: Annotated[
        str | None, typer.Option("--step", help="Only this step: its label, or the beginning of its name.")
    ] = None,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """What the workers of a run printed, step by step."""
    from petl_ray.orchestration import Home, runs

    texts = runs.logs(Home.at(home), run_id, step)
    if as_json:
        print_json(texts)
        return
    for label, text in texts.items():
        typer.echo(f"--- {label}\n{text}")


@app.command("adopt")
def adopt(
    old: Annotated[str, typer.Argument(help="The step whose outcome stays valid (its name, or the beginning).")],
    new: Annotated[str, typer.Argument(help="The step that shall have it (full name; `petl-ray plan --json`).")],
    reason: Annotated[str, typer.Option("--reason", help="Why the outcome is still right.")],
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Let an old outcome stand for a new question, where a change of code or plan does not touch it."""
    from petl_ray.orchestration import Home, runs

    said = runs.adopt(Home.at(home), old, new, reason)
    if as_json:
        print_json(said)
    else:
        remark(f"{said['new'][:12]} has the outcome of {said['old'][:12]}: {told(said['outcome_digest'])}.")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
