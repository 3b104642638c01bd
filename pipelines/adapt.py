"""Text to served adapters: prepare, search, train, evaluate, register, promote, deploy — read it top to bottom.

The body is deterministic between `run.*` calls; durability is the run's affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from petl_ray.artifact import Adapter, Artifact, Dataset, Endpoint, Release, Report
from petl_ray.data import prepare
from petl_ray.errors import PermanentError, TemporaryError
from petl_ray.evaluation import evaluate
from petl_ray.orchestration import Run
from petl_ray.plan import LockedPlan
from petl_ray.registry import current, promote, register
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
        found_by = [best[key]] if key in best else []
        registered = run.do(register, plan.registry, candidates[key], reports[key], *found_by)
        return run.do(promote, plan.tasks[key].gate, registered, reports[key])

    datasets: Mapping[str, Dataset] = run.each(lambda task: run.make(prepare, task.data), plan.tasks)
    best = run.pack(search.using(train=train), plan.searches(datasets))
    adapters: Mapping[str, Adapter] = run.pack(train, plan.trainings(datasets, best))
    candidates = plan.candidates(adapters)
    reports: Mapping[str, Report] = run.each(judge, {key: key for key in candidates})
    releases: Mapping[str, Release] = run.each(release, {key: key for key in reports})
    endpoint = serve(run, plan, [releases[key] for key in plan.tasks if key in releases])
    return summarize(run, plan, datasets, best, adapters, reports, releases, endpoint)


def serve(run: Run, plan: LockedPlan, releases: Sequence[Release]) -> Endpoint | None:
    """What was promoted, now or before, served; None where the plan serves nothing or nothing has a name yet.

    What goes wrong here is the run's failure, but not its end: what was paid for is summarized all the same.
    """
    if plan.serving is None:
        return None
    try:
        named = [release for release in releases if _has_name(run, release)]
        return run.do(deploy, plan.serving, *named) if named else None
    except (PermanentError, TemporaryError) as error:
        run.failures.setdefault(deploy.name, error)
        return None


def _has_name(run: Run, release: Artifact) -> bool:
    """Whether the release's task has a champion: a refused candidate leaves the one that stood, if one did."""
    if not isinstance(release, Release):
        return True  # a rehearsal cannot know what the gate will say
    return release.status == "champion" or current(release.task, run.home.database_url) is not None
