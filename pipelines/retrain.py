"""The nightly question: has anything changed? If not, say so in seconds; if so, adapt, gate and promote."""

from __future__ import annotations

from petl_ray.orchestration import Run, runs
from petl_ray.plan import LockedPlan
from petl_ray.registry.promotions import champions
from petl_ray.store import open_database
from pipelines.adapt import adapt
from pipelines.summary import Summary


def retrain(run: Run, plan: LockedPlan) -> Summary:
    """As `adapt`, but a recorded no-op where an earlier run answered the same data, base and plan already."""
    earlier = runs.succeeded_before(run.home, plan.digest)
    if earlier is not None:
        run.report("run.unchanged", earlier=earlier["id"])
        standing = champions(open_database(run.home.database_url))
        today = {task: (named.version, named.adapter_digest) for task, named in standing.items()}
        return Summary.unchanged(earlier["summary"], earlier["id"], today)
    return adapt(run, plan)
