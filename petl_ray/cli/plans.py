"""`petl-ray validate`, `plan` and `schema`: what a plan asks and would do, before anything is paid."""

from __future__ import annotations

from typing import Any

import typer

from petl_ray.cli.options import AsJson, ClusterPath, HomePath, PlanPath, Settings, Tasks
from petl_ray.cli.screen import complain, out, print_json, print_table, remark, size


def validate(plan: PlanPath, tasks: Tasks = None, settings: Settings = None, as_json: AsJson = False) -> None:
    """Read a plan and resolve its files and base; exit code 2 or more names what is wrong."""
    from petl_ray.errors import AdapterError, PlanError
    from petl_ray.plan import estimate, lock, read_plan
    from petl_ray.verb import Resources

    read = read_plan(plan, settings or (), tasks or ())
    locked = lock(read)
    for key, task in locked.tasks.items():
        try:
            estimate(task.search or task.training, Resources(), task.type)
        except (AdapterError, PlanError) as error:
            raise error.within(f"tasks.{key}") from error
    if as_json:
        print_json({"name": read.name, "digest": locked.digest, "tasks": list(read.tasks)})
    else:
        remark(f"{plan}: fine; {len(read.tasks)} tasks ({', '.join(read.tasks)}), plan digest {locked.digest[:12]}.")


def plan(
    plan: PlanPath,
    tasks: Tasks = None,
    settings: Settings = None,
    cluster: ClusterPath = "local",
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """What a run would do: every step, found or to be computed and why, and what it would cost. Executes nothing.

    A step that does not fit into memory, or has no place in its base, says so; the exit code is its own then (5, 4 or 2),
    after all are told.
    """
    from petl_ray.cli.where import placement
    from petl_ray.errors import AdapterError, CapacityError, PermanentError, PlanError
    from petl_ray.orchestration import Home
    from petl_ray.plan import read_plan
    from petl_ray.scheduling.launch import costs, rehearsal

    read = read_plan(plan, settings or (), tasks or ())
    steps = rehearsal(read, Home.at(home), where := placement(cluster))
    cost, misfits = costs(Home.at(home), where, steps), list[PermanentError]()
    rows: list[dict[str, Any]] = []
    for step in steps:
        row: dict[str, Any] = {"step": step.label, "status": step.status, "why": step.why, "name": step.name}
        row |= {"cpus": step.resources.cpus, "work": "", "memory_bytes": None, "packing": None}
        try:
            row |= cost(step)
        except (AdapterError, CapacityError, PlanError) as error:
            misfits.append(error)
            row["why"] = f"{step.why}; {error.found}" if step.why else error.found
        rows.append(row)
    _show(rows, as_json)
    if misfits:  # not raised: with --json the rows are the one document
        complain(str(misfits[0]))
        raise typer.Exit(misfits[0].exit_code)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    told = [
        [row["step"], row["status"], row["why"], row["work"], _size(row["memory_bytes"]), (row["name"] or "")[:12]]
        for row in rows
    ]
    print_table(["step", "status", "why", "work", "memory", "name"], told)
    for why, labels in _packings(rows).items():
        shared = ", whose memory they share where they are packed together" if len(labels) > 1 else ""
        out.print(f"{', '.join(labels)}: {why}{shared}", markup=False, soft_wrap=True)
    hits = sum(row["status"] == "hit" for row in rows)
    remark(f"{hits} of {len(rows)} steps are found; steps after one that is unknown follow from it.")


def _packings(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The steps by how their slots are packed, in words."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if packing := row["packing"]:
            count = packing["packs"]
            each = f"{count} packs, each with its share of the machine's memory; " if count > 1 else ""
            found.setdefault(f"{each}{packing['why']}; {packing['calibration']}", []).append(row["step"])
    return found


def _size(memory_bytes: int | None) -> str:
    return "" if memory_bytes is None else f"~{size(memory_bytes)}"


def schema() -> None:
    """The JSON Schema of plans, for editors."""
    from petl_ray.plan import plan_schema

    print_json(plan_schema())
