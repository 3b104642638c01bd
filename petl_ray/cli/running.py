"""`petl-ray run`: a plan, from text to served adapters."""

from __future__ import annotations

from typing import Annotated

import typer

from petl_ray.cli.options import AsJson, ClusterPath, HomePath, PlanPath, Settings, Tasks


def run(
    plan: PlanPath,
    tasks: Tasks = None,
    settings: Settings = None,
    cluster: ClusterPath = "local",
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="Name the run, or take up the one of that name.")
    ] = None,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Stay up until Ctrl-C after the run.")] = False,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Run a plan. What any run ever computed is found, not computed again; a run that was left behind is resumed."""
    from petl_ray.cli.ending import farewell, stay
    from petl_ray.cli.results import serve_command, tell
    from petl_ray.cli.screen import remark
    from petl_ray.cli.watching import Watch
    from petl_ray.cli.where import placement
    from petl_ray.orchestration import Home
    from petl_ray.plan import read_plan
    from petl_ray.scheduling.launch import launch

    read = read_plan(plan, settings or (), tasks or ())
    where = placement(cluster)
    place = Home.at(home)
    with farewell(where), Watch(silent=as_json) as watch:
        summary = launch(read, place, where, run_id=run_id, on_event=watch)
        again = None
        if summary.endpoint and where.ray == "local" and not keep_serving:
            again = serve_command(summary.endpoint, plan, settings or (), home)
        tell(summary, watch, as_json, again)
        if keep_serving and summary.endpoint:
            stay(summary.endpoint)
        elif keep_serving:
            remark(f"This run serves nothing; `petl-ray serve {plan}` serves the champions.")
    if not summary.succeeded:
        raise typer.Exit(summary.exit_code)
