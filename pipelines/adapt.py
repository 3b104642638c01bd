"""Text to served adapters: prepare, search, train, evaluate, register, promote, deploy — read it top to bottom.

The body is deterministic between `run.*` calls; durability is the run's affair.
"""

from __future__ import annotations

from collections.abc import Mapping

from petl_ray.artifact import Adapter, Dataset, Release, Report
from petl_ray.data import prepare
from petl_ray.evaluation import evaluate
from petl_ray.orchestration import Run
from petl_ray.plan import LockedPlan
from petl_ray.registry import promote, register
from petl_ray.serving import deploy
from petl_ray.training import train
from petl_ray.tuning import search
from pipelines.summary import Summary, summarize


def adapt(run: Run, plan: LockedPlan) -> Summary:
    """Adapt the plan's base to every task of it; a task that fails does not sink the others."""

    def judge(key: str) -> Report:
        rivals = plan.rivals(key, candidates[key], adapters)
        return run.make(evaluate, plan.evaluation(key, rivals), candidates[key], datasets[key], *rivals.values())

    def release(key: str) -> Release:
        registered = run.do(register, plan.registry, candidates[key], reports[key])
        return run.do(promote, plan.tasks[key].gate, registered, reports[key])

    datasets: Mapping[str, Dataset] = run.each(lambda task: run.make(prepare, task.data), plan.tasks)
    best = run.pack(search.using(train=train), plan.searches(datasets))
    adapters: Mapping[str, Adapter] = run.pack(train, plan.trainings(datasets, best))
    candidates = plan.candidates(adapters)
    reports: Mapping[str, Report] = run.each(judge, {key: key for key in candidates})
    releases: Mapping[str, Release] = run.each(release, {key: key for key in reports})
    served = [releases[key] for key in plan.tasks if key in releases]
    endpoint = run.do(deploy, plan.serving, *served) if plan.serving and served else None
    return summarize(run, plan, datasets, best, adapters, reports, releases, endpoint)
