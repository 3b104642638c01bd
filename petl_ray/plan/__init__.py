"""The plan: one YAML that says what is wanted of every room, read closed, then locked to the bytes it names.

In: a YAML file with `include:`, `defaults:`, `tasks:`. Out: a Plan, and by `lock()` a LockedPlan with each room's
questions. It must not know how anything is executed.
"""

from petl_ray.plan.estimate import estimate, slots_side_by_side
from petl_ray.plan.lock import lock
from petl_ray.plan.locked import CHAMPION, DEFAULT, HEAD_ONLY, SEED, TUNED, LockedPlan, LockedTask
from petl_ray.plan.reading import read_plan
from petl_ray.plan.schema import plan_schema
from petl_ray.plan.spec import Plan

__all__ = [
    "CHAMPION",
    "DEFAULT",
    "HEAD_ONLY",
    "SEED",
    "TUNED",
    "LockedPlan",
    "LockedTask",
    "Plan",
    "estimate",
    "lock",
    "plan_schema",
    "read_plan",
    "slots_side_by_side",
]
