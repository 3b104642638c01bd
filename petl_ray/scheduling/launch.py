"""One run of one plan, from the YAML to its summary: read, lock, open or resume the durable run, walk the pipeline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from petl_ray.errors import ConflictError
from petl_ray.orchestration import Home, Placement, PlannedStep, Run, rehearse, start_run
from petl_ray.plan import LockedPlan, Plan, lock
from petl_ray.registry import current
from petl_ray.serving import ServeSpec
from petl_ray.serving.address import refuse_taken_port
from petl_ray.telemetry import Sink
from pipelines import PIPELINES
from pipelines.summary import Summary

PORT_PATIENCE_S = 15.0

Pipeline = Callable[[Run, LockedPlan], Summary]


def pipeline(name: str) -> Pipeline:
    """The pipeline of that name; a plan's `pipeline` is checked when it is read."""
    module, _, function = PIPELINES[name].partition(":")
    found: Pipeline = getattr(import_module(module), function)
    return found


def lock_at(plan: Plan, home: Home) -> LockedPlan:
    """The locked plan, with the champions that the journal of `home` names today."""
    return lock(plan, lambda task: current(task, home.database_url))


def launch(
    plan: Plan,
    home: Home,
    placement: Placement,
    *,
    run_id: str | None = None,
    on_event: Sink | None = None,
) -> Summary:
    """Run a plan to its end, or take up the run of the same locked plan that was left behind."""
    locked = lock_at(plan, home)
    return _walk(locked, home, placement, plan.model_dump(mode="json", exclude_none=True), run_id, on_event)


def resume(
    stored: dict[str, Any], run_id: str, home: Home, placement: Placement, on_event: Sink | None = None
) -> Summary:
    """Take up the run `run_id` from its stored lock, whatever has become of the plan's file."""
    return _walk(LockedPlan.model_validate(stored), home, placement, None, run_id, on_event)


def rehearsal(plan: Plan, home: Home, placement: Placement) -> list[PlannedStep]:
    """What a run of this plan would do, without doing any of it."""
    locked = lock_at(plan, home)
    return rehearse(home, placement, lambda run: pipeline(locked.pipeline)(run, locked))


def _walk(
    locked: LockedPlan,
    home: Home,
    placement: Placement,
    as_read: dict[str, Any] | None,
    run_id: str | None,
    on_event: Sink | None,
) -> Summary:
    if locked.serving is not None and placement.ray == "local":
        _refuse_taken_port(locked.serving)
    with start_run(
        home,
        pipeline=locked.pipeline,
        locked=locked.model_dump(mode="json"),
        digest=locked.digest,
        plan=as_read,
        placement=placement,
        owner=locked.owner,
        run_id=run_id,
        on_event=on_event,
    ) as run:
        standing = LockedPlan.model_validate(run.locked)  # a resumed run sees the world of its own lock
        summary = pipeline(standing.pipeline)(run, standing)
        run.summary = summary.model_dump(mode="json")
    return summary


def _refuse_taken_port(serving: ServeSpec) -> None:
    """ConflictError before anything is computed for a port that somebody holds.

    What a killed driver was serving lets go of the port within seconds; and a Ray that this process runs already may
    hold it rightly.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return
    deadline = time.monotonic() + PORT_PATIENCE_S
    while True:
        try:
            refuse_taken_port(serving)
            return
        except ConflictError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
