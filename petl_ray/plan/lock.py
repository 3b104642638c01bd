"""`lock()`: a plan's outside references resolved once, so that a run never sees the world change under it."""

from __future__ import annotations

from collections.abc import Callable

from petl_ray import data
from petl_ray.artifact import Adapter
from petl_ray.data import prepare
from petl_ray.evaluation import evaluate
from petl_ray.models import resolve
from petl_ray.models.spec import LockedBase
from petl_ray.plan.locked import LockedPlan, LockedTask
from petl_ray.plan.spec import Plan, TaskPlan
from petl_ray.registry import promote, register
from petl_ray.serving import deploy
from petl_ray.training import train
from petl_ray.tuning import search

VERBS = (prepare, search, train, evaluate, register, promote, deploy)


def lock(plan: Plan, champion: Callable[[str], Adapter | None] = lambda task: None) -> LockedPlan:
    """The locked plan: files and ids → digests, `auto` → what it means here, each task's champion of the day.

    Raises DataError, BaseModelError or PlanError for what cannot be resolved, before anything is paid.
    """
    base = resolve(plan.base)
    return LockedPlan(
        name=plan.name,
        owner=plan.owner,
        pipeline=plan.pipeline,
        tasks={key: _lock_task(task, base, champion(key)) for key, task in plan.tasks.items()},
        registry=plan.registry,
        serving=plan.serving,
        verbs={verb.name: verb.version for verb in VERBS},
    )


def _lock_task(task: TaskPlan, base: LockedBase, champion: Adapter | None) -> LockedTask:
    training = task.training.model_copy(update={"base": base})
    search = task.search
    if search is not None:
        search = type(search).model_validate({**search.model_dump(mode="json"), "recipe": training})
    return LockedTask(
        type=task.type,
        data=data.lock(task.data),
        training=training,
        search=search,
        evaluation=task.evaluation,
        gate=task.gate,
        champion=champion,
    )
