"""The table of task types: a new one is one file and one line here."""

from __future__ import annotations

from petl_ray.errors import PlanError
from petl_ray.tasks.batch import Task
from petl_ray.tasks.causal_lm import CausalLm
from petl_ray.tasks.classification import Classification

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), CausalLm())}


def task_of(task_type: str) -> Task:
    """The task of that type; raises PlanError for one that is not in the table."""
    if task_type not in TASKS:
        raise PlanError(
            "task_type", f"got {task_type!r}", "no such task type is known", f"Choose {' or '.join(sorted(TASKS))}"
        )
    return TASKS[task_type]
