"""One run of one plan, from the YAML to its summary: read, lock, open or resume the durable run, walk the pipeline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from petl_ray.bank.memory import Machine
from petl_ray.errors import AdapterError, CapacityError, ConflictError, PlanError, TemporaryError
from petl_ray.models import Precision
from petl_ray.models.spec import TaskType
from petl_ray.orchestration import Home, Placement, PlannedStep, Run, ask, machines, rehearse, remembered, start_run
from petl_ray.plan import LockedPlan, Plan, estimate, lock, slots_side_by_side
from petl_ray.registry import current
from petl_ray.serving import ServeSpec
from petl_ray.serving.address import refuse_taken_port
from petl_ray.spec import Spec
from petl_ray.telemetry import Sink
from petl_ray.training import TrainSpec, train
from petl_ray.tuning import SearchSpec, search
from petl_ray.tuning.layout import trials_under_way
from petl_ray.verb import Resources
from pipelines import PIPELINES
from pipelines.summary import Summary

PORT_PATIENCE_S = 15.0
SEEDS = 3  # the fewest that have a median which is neither the best nor the worst

Pipeline = Callable[[Run, LockedPlan], Summary]


def pipeline(name: str) -> Pipeline:
    """The pipeline of that name; a plan's `pipeline` is checked when it is read."""
    module, _, function = PIPELINES[name].partition(":")
    found: Pipeline = getattr(import_module(module), function)
    return found


def lock_at(plan: Plan, home: Home, placement: Placement) -> LockedPlan:
    """The locked plan, with the champions that the journal of `home` names today, for the machines of `placement`.

    Raises what `lock` and `precision_at` raise.
    """
    return lock(
        plan,
        lambda task: current(task, home.database_url),
        lambda: precision_at(placement),
        lambda spec, task_type: seeds_at(placement, spec, task_type),
    )


def precision_at(placement: Placement) -> Precision:
    """What a base's `precision: auto` means on the machines where `placement` trains.

    Raises PlanError if they do not agree, CapacityError or TemporaryError if the cluster has no such machine or is away.
    """
    answers: list[Precision] = sorted(set(ask(placement, train.name, "petl_ray.models:choose_precision")))
    if len(answers) > 1:
        raise PlanError(
            "base.precision",
            "got auto",
            f"on the machines of placement {placement.name} that can train it means {' and '.join(answers)}",
            "Write one of them",
        )
    return answers[0]


def seeds_at(placement: Placement, spec: TrainSpec | SearchSpec, task_type: TaskType) -> int:
    """What `seeds: auto` means where `placement` trains what `spec` asks for or finds: three where a pack has the slots
    for them side by side, and the machine the memory, else one; one as well where several workers train one adapter.

    Raises CapacityError or TemporaryError if the cluster has no such machine or is away.
    """
    asked = placement.resources(train.name)
    if asked.slots < SEEDS or asked.workers > 1:
        return 1
    given, beside = _given(placement, train.name)
    if given.slots < SEEDS or given.workers > 1:
        return 1
    least = min(_machines(placement, train.name), key=lambda one: one.bytes)
    return SEEDS if slots_side_by_side(spec, given, task_type, least, beside) >= SEEDS else 1


def launch(
    plan: Plan,
    home: Home,
    placement: Placement,
    *,
    run_id: str | None = None,
    on_event: Sink | None = None,
) -> Summary:
    """Run a plan to its end, or take up the run of the same locked plan that was left behind.

    A run that is taken up finds its files and base where the plan finds them today, and keeps its own champions.
    Raises what `lock_at` and `refuse_what_cannot_train` raise before there is a run.
    """
    locked = lock_at(plan, home, placement)
    refuse_what_cannot_train(locked, home, placement)
    return _walk(locked, home, placement, plan.model_dump(mode="json", exclude_none=True), run_id, on_event)


def resume(
    stored: dict[str, Any], run_id: str, home: Home, placement: Placement, on_event: Sink | None = None
) -> Summary:
    """Take up the run `run_id` from its stored lock, whatever has become of the plan's file."""
    return _walk(LockedPlan.model_validate(stored), home, placement, None, run_id, on_event)


def rehearsal(plan: Plan, home: Home, placement: Placement) -> list[PlannedStep]:
    """What a run of this plan would do, without doing any of it."""
    locked = lock_at(plan, home, placement)
    return rehearse(home, placement, lambda run: pipeline(locked.pipeline)(run, locked))


def costs(
    home: Home, placement: Placement, steps: Sequence[PlannedStep], *, at_best: bool = False
) -> Callable[[PlannedStep], dict[str, Any]]:
    """What one of `steps` would cost where `placement` does it; see `petl_ray.plan.estimate`.

    What is found costs nothing, so it is held against no machine. All searches share their packs. It raises
    CapacityError, naming the step, where there is no room for one slot on the machine with the least memory as it is
    now; with `at_best` on the one with the most, were nothing else there.
    """
    measured = remembered(home, "memory")
    searches = [step.spec for step in steps if step.status != "hit" and isinstance(step.spec, SearchSpec)]

    @cache
    def given(verb: str) -> tuple[Resources, int]:
        return _given(placement, verb)

    @cache
    def machine(verb: str) -> Machine | None:
        """None while the cluster is away, since a plan can be read without it."""
        try:
            found = sorted(_machines(placement, verb), key=lambda one: one.bytes)
        except TemporaryError:
            return None
        return replace(found[-1], free_bytes=None) if at_best else found[0]

    def cost(step: PlannedStep) -> dict[str, Any]:
        trains = step.verb in (search.name, train.name) and step.status != "hit"
        here = machine(step.verb) if trains else None
        resources, beside = given(step.verb) if here is not None else (step.resources, 1)
        under_way = trials_under_way(searches)
        try:
            return estimate(step.spec, resources, _task_type(step.spec), here, measured, beside, under_way)
        except (CapacityError, AdapterError, PlanError) as error:
            raise error.within(step.label) from error

    return cost


def refuse_what_cannot_train(locked: LockedPlan, home: Home, placement: Placement) -> None:
    """CapacityError, AdapterError or PlanError for a search or training, not yet found, that has no room on any machine
    of `placement` or no place in its base; a run of the plan would come to it after it had paid for others.

    What others hold at the moment is left out: they may be this very run's, whose driver was killed.
    """
    steps = rehearse(home, placement, lambda run: pipeline(locked.pipeline)(run, locked))
    cost = costs(home, placement, steps, at_best=True)
    for step in steps:
        if step.verb in (search.name, train.name) and step.status != "hit":
            cost(step)


def _task_type(spec: Spec) -> TaskType:
    """Of what a search or a training asks for; of any other step, which has none to tell, that of most."""
    recipe = spec.template() if isinstance(spec, SearchSpec) else spec
    return recipe.task_type if isinstance(recipe, TrainSpec) else "classification"


def _given(placement: Placement, verb: str) -> tuple[Resources, int]:
    """What the verb is given on the machines there are, and how many of its processes share one of them."""
    there = machines(placement)
    resources = placement.resources(verb, there)
    processes = replace(resources, packs=resources.packs * resources.workers)
    return resources, processes.beside(there)


def _machines(placement: Placement, verb: str) -> list[Machine]:
    """The memory of each machine that could do it."""
    found: list[Machine] = ask(placement, verb, "petl_ray.bank.memory:machine_here")
    return found


def _walk(
    locked: LockedPlan,
    home: Home,
    placement: Placement,
    as_read: dict[str, Any] | None,
    run_id: str | None,
    on_event: Sink | None,
) -> Summary:
    if locked.serving is not None:
        _refuse_unservable(locked.serving, placement)
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
        world = _renewed(LockedPlan.model_validate(run.locked), locked)
        summary = pipeline(world.pipeline)(run, world)
        run.summary = summary.model_dump(mode="json")
    return summary


def _renewed(stored: LockedPlan, today: LockedPlan) -> LockedPlan:
    """The lock that a run began with, told by its equal of today: the same bytes, which may have been moved meanwhile."""
    champions = {key: task.champion for key, task in stored.tasks.items()}
    tasks = {key: task.model_copy(update={"champion": champions[key]}) for key, task in today.tasks.items()}
    return today.model_copy(update={"tasks": tasks})


def _refuse_unservable(serving: ServeSpec, placement: Placement) -> None:
    """PlanError or ConflictError before anything is computed for what could not be served once it is."""
    if placement.ray == "none":
        raise PlanError(
            "serving",
            f"placement {placement.name} runs every step in this process",
            "serving needs a Ray",
            "Run with --cluster local, or without serving: --set serving=null",
        )
    if placement.ray == "local":
        _refuse_taken_port(serving)


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
