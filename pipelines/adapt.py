"""Text to served adapters: prepare, search, train, evaluate, register, promote, deploy — read it top to bottom.

The body is deterministic between `run.*` calls; durability is the run's affair.
"""

from __future__ import annotations

from petl_ray.artifact import Adapter, Dataset, Release, Report
from petl_ray.data import prepare
from petl_ray.evaluation import evaluate
from petl_ray.orchestration import Run
from petl_ray.plan import LockedPlan, LockedTask
from petl_ray.registry import promote, register
from petl_ray.serving import deploy
from petl_ray.training import train
from petl_ray.tuning import search
from pipelines.summary import Summary


def adapt(run: Run, plan: LockedPlan) -> Summary:
    """Adapt the plan's base to every task of it; a task that fails does not sink the others."""
    datasets = run.each(lambda key: _prepare(run, key, plan.tasks[key]), {key: key for key in plan.tasks})
    best = run.pack(search.using(train=train), plan.searches(datasets))
    adapters = run.pack(train, plan.trainings(datasets, best))
    trained = plan.candidates(adapters)
    reports = run.each(
        lambda key: _evaluate(run, key, plan, datasets[key], trained[key], adapters), {key: key for key in trained}
    )
    releases = run.each(
        lambda key: _release(run, key, plan.tasks[key], plan, trained[key], reports[key]), {key: key for key in reports}
    )
    endpoint = None
    if plan.serving is not None and releases:
        endpoint = run.do(deploy, plan.serving, *(releases[key] for key in plan.tasks if key in releases), label="deploy")
    return Summary.of(plan, best, adapters, reports, releases, endpoint, run.failures)


def _prepare(run: Run, key: str, task: LockedTask) -> Dataset:
    return run.make(prepare, task.data, label=f"prepare {key}", outcome=Dataset)


def _evaluate(
    run: Run, key: str, plan: LockedPlan, dataset: Dataset, candidate: Adapter, adapters: dict[str, Adapter]
) -> Report:
    rivals = plan.rivals(key, candidate, adapters)
    spec = plan.tasks[key].evaluation.model_copy(update={"roles": tuple(rivals)})
    return run.make(evaluate, spec, candidate, dataset, *rivals.values(), label=f"evaluate {key}", outcome=Report)


def _release(run: Run, key: str, task: LockedTask, plan: LockedPlan, adapter: Adapter, report: Report) -> Release:
    registered = run.do(register, plan.registry, adapter, report, label=f"register {key}", outcome=Release)
    return run.do(promote, task.gate, registered, report, label=f"promote {key}", outcome=Release)
