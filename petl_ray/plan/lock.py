"""`lock()`: a plan's outside references resolved once, so that a run never sees the world change under it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from petl_ray import data
from petl_ray.artifact import Adapter
from petl_ray.errors import AdapterError, BaseModelError, PlanError, TemporaryError
from petl_ray.models import resolve
from petl_ray.models.spec import BaseSpec, LockedBase, Precision, TaskType
from petl_ray.orchestration.verbs import VERBS
from petl_ray.plan.locked import LockedPlan, LockedTask
from petl_ray.plan.spec import Plan, TaskPlan
from petl_ray.registry.measurable import why_lost, why_unmeasurable
from petl_ray.training import TrainSpec
from petl_ray.tuning import SearchSpec
from petl_ray.tuning.checking import refuse_nonsense

AutoSeeds = Callable[[TrainSpec | SearchSpec, TaskType], int]


def lock(
    plan: Plan,
    champion: Callable[[str], Adapter | None] = lambda task: None,
    auto_precision: Callable[[], Precision] | None = None,
    auto_seeds: AutoSeeds = lambda spec, task_type: 1,
) -> LockedPlan:
    """The locked plan: files and ids → digests, `precision: auto` → its value, each task's champion of the day.

    A champion that cannot be measured again (its base is gone, say) is left out; the gate says so in its time.
    `auto_precision` says what `auto` means where the plan will train (default: on this machine); only a plan that
    leaves it open asks; `auto_seeds` what `seeds: auto` means there for a search or training. Raises DataError,
    BaseModelError, AdapterError or PlanError for what cannot be resolved, before anything is paid.
    """
    base = _resolved(plan.base, auto_precision)
    lost = cache(why_lost)  # the champions of many tasks share a base

    def measurable(key: str, task: TaskPlan) -> Adapter | None:
        standing = champion(key)
        gone = standing is None or why_unmeasurable(standing, task.type, base.pinned, lost)
        return None if gone else standing

    tasks = {key: _lock_task(key, task, base, measurable(key, task), auto_seeds) for key, task in plan.tasks.items()}
    for key, task in tasks.items():
        if task.search is not None:
            _refuse_nonsense(key, task.search)
    return LockedPlan(
        name=plan.name,
        owner=plan.owner,
        pipeline=plan.pipeline,
        tasks=tasks,
        registry=plan.registry,
        serving=plan.serving,
        verbs={verb.name: verb.version for verb in VERBS},
    )


def _resolved(base: BaseSpec, auto_precision: Callable[[], Precision] | None) -> LockedBase:
    """As `resolve`; who has no such base is told how a plan is run on another."""
    try:
        return resolve(base, auto_precision)
    except (BaseModelError, TemporaryError) as error:
        do = f"{error.do} Or" if error.do.endswith((".", "?")) else f"{error.do}, or" if error.do else "You may"
        do = f"{do} name another base: --set base.source=DIR"
        raise type(error)(error.what, error.found, error.why, do, **error.extra) from error


def _lock_task(
    key: str, task: TaskPlan, base: LockedBase, champion: Adapter | None, auto_seeds: AutoSeeds
) -> LockedTask:
    training = task.training.model_copy(update={"base": base})
    search = task.search
    if search is not None:
        search = type(search).model_validate({**search.model_dump(mode="json"), "recipe": training})
    try:
        seeds = auto_seeds(search or training, task.type) if task.seeds == "auto" else task.seeds
    except (AdapterError, PlanError) as error:
        raise error.within(f"tasks.{key}") from error
    return LockedTask(
        type=task.type,
        data=data.lock(task.data),
        training=training,
        search=search,
        seeds=seeds,
        evaluation=task.evaluation,
        gate=task.gate,
        champion=champion,
    )


def _refuse_nonsense(key: str, search: SearchSpec) -> None:
    """As tuning does, with the key path of the plan."""
    try:
        refuse_nonsense(search)
    except PlanError as error:
        raise PlanError(f"tasks.{key}.{error.what}", error.found, error.why, error.do) from error
