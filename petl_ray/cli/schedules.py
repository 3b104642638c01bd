"""`petl-ray schedule` and `petl-ray scheduler`: plans by cron."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from petl_ray.cli.options import AsJson, HomePath, PlanPath, Settings, Tasks
from petl_ray.cli.screen import complain, moment, print_json, print_table, remark, show

app = typer.Typer(help="Add, list and remove schedules.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The schedule's name; its runs are named after it.", show_default=False)]


@app.command("add")
def add(
    name: Name,
    plan: PlanPath,
    cron: Annotated[str, typer.Option("--cron", help="Five fields, for instance '30 2 * * *'.", show_default=False)],
    timezone: Annotated[str, typer.Option("--timezone", help="The time zone of the cron line.")] = "UTC",
    cluster: Annotated[str | None, typer.Option("--cluster", help="As for `petl-ray run`.")] = None,
    settings: Settings = None,
    tasks: Tasks = None,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Run a plan by cron; some `petl-ray scheduler` must be up when a tick comes."""
    from petl_ray import scheduling
    from petl_ray.orchestration.home import Home, opened
    from petl_ray.plan import read_plan

    read_plan(plan, settings or (), tasks or ())  # a plan that cannot be read must not wait for the night to say so
    options = {
        "set": settings or [],
        "task": tasks or [],
        "cluster": [cluster] if cluster else [],
        "directory": str(Path.cwd()),
    }
    database = opened(Home.at(home)).database
    schedule = scheduling.add(database, name, plan.absolute(), cron, timezone, options)
    (tick,) = scheduling.next_ticks(database, 1)[schedule.name]
    if as_json:
        print_json({**vars(schedule), "next": tick})
    else:
        remark(f"{name}: {cron} ({timezone}), next at {moment(tick, timezone)}.")


@app.command("ls")
def ls(home: HomePath = None, as_json: AsJson = False) -> None:
    """All schedules, and what each has started lately."""
    from petl_ray import scheduling
    from petl_ray.orchestration.home import Home, opened

    database = opened(Home.at(home)).database
    rows = []
    for schedule in scheduling.schedules(database):
        recent = [vars(firing) for firing in scheduling.firings(database, schedule.name, 10)]
        rows.append({**vars(schedule), "firings": recent, "last": recent[0]["state"] if recent else ""})
    show(rows, ["name", "cron", "timezone", "plan_path", "last"], as_json, "No schedule yet: petl-ray schedule add.")


@app.command("rm")
def rm(name: Name, home: HomePath = None, as_json: AsJson = False) -> None:
    """Remove a schedule; its runs stay."""
    from petl_ray import scheduling
    from petl_ray.orchestration.home import Home, opened

    scheduling.remove(opened(Home.at(home)).database, name)
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        remark(f"{name}: removed.")


@app.command("next")
def upcoming(
    count: Annotated[int, typer.Option(help="So many ticks of each.")] = 3,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """The next ticks of every schedule."""
    from petl_ray import scheduling
    from petl_ray.orchestration.home import Home, opened

    database = opened(Home.at(home)).database
    ticks = scheduling.next_ticks(database, count)
    if as_json:
        print_json(ticks)
        return
    zones = {schedule.name: schedule.timezone for schedule in scheduling.schedules(database)}
    told = [[name, ", ".join(moment(tick, zones.get(name)) for tick in times)] for name, times in ticks.items()]
    print_table(["schedule", "ticks"], told)


def scheduler(home: HomePath = None) -> None:
    """Fire schedules until interrupted; several may run side by side, each tick is fired once."""
    from petl_ray.orchestration.home import Home
    from petl_ray.scheduling.scheduler import Scheduler
    from petl_ray.scheduling.schedules import Firing

    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())

    def tell(firing: Firing) -> None:
        remark(
            f"{moment(firing.ended_at or firing.fired_at)}  {firing.run_id}  {firing.state}  {firing.note or ''}".rstrip()
        )

    remark("Scheduler is up; Ctrl-C stops it, runs that are under way go on.")
    Scheduler(Home.at(home), tell, complain).run(stop)
