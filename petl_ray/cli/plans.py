"""`petl-ray validate`, `plan` and `schema`: what a plan asks and would do, before anything is paid."""

from __future__ import annotations

from typing import Any

from petl_ray.cli.options import AsJson, ClusterPath, HomePath, PlanPath, Settings, Tasks
from petl_ray.cli.screen import print_json, print_table, remark, size


def validate(plan: PlanPath, tasks: Tasks = None, settings: Settings = None, as_json: AsJson = False) -> None:
    """Read a plan and resolve its files and base; exit code 2 or more names what is wrong."""
    from petl_ray.plan import lock, read_plan

    read = read_plan(plan, settings or (), tasks or ())
    locked = lock(read)
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
    """What a run would do: every step, found or to be computed and why, and what it would cost. Executes nothing."""
    from petl_ray.cli.where import placement
    from petl_ray.orchestration import Home
    from petl_ray.plan import read_plan
    from petl_ray.scheduling.launch import costs, rehearsal

    read = read_plan(plan, settings or (), tasks or ())
    types = {key: task.type for key, task in read.tasks.items()}
    steps = rehearsal(read, Home.at(home), where := placement(cluster))
    cost = costs(Home.at(home), where)
    rows = [
        {
            "step": step.label,
            "status": step.status,
            "why": step.why,
            "name": step.name,
            "cpus": step.resources.cpus,
            **cost(step, types.get(_task_of(step.label), "classification")),
        }
        for step in steps
    ]
    if as_json:
        print_json(rows)
        return
    told = [
        [row["step"], row["status"], row["why"], row["work"], _size(row["memory_bytes"]), (row["name"] or "")[:12]]
        for row in rows
    ]
    print_table(["step", "status", "why", "work", "memory", "name"], told)
    for why, labels in _packings(rows).items():
        remark(f"{', '.join(labels)}: {why}")
    hits = sum(step.status == "hit" for step in steps)
    remark(f"{hits} of {len(steps)} steps are found; steps after one that is unknown follow from it.")


def _task_of(label: str) -> str:
    """The task in a step's label: `train emails/tuned` is of `emails`."""
    return label.split()[-1].partition("/")[0]


def _packings(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The steps by how their slots are packed, in words."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if packing := row["packing"]:
            found.setdefault(f"{packing['why']}; {packing['calibration']}", []).append(row["step"])
    return found


def _size(memory_bytes: int | None) -> str:
    return "" if memory_bytes is None else f"~{size(memory_bytes)}"


def schema() -> None:
    """The JSON Schema of plans, for editors."""
    from petl_ray.plan import plan_schema

    print_json(plan_schema())
