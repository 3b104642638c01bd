"""Tasks: what a task type means — encode, collate, head size, loss, scores. A new type is one file and one line.

Rows of a Dataset go in, padded batches and figures over rows come out. Knows tokenizers and logits; must not know
adapters, training loops or serving.
"""

from petl_ray.tasks.batch import Batch, Encoded, RowScore, Task
from petl_ray.tasks.late import LateLogits
from petl_ray.tasks.metrics import DIRECTIONS, Outcomes, confusion, from_confusion, measure
from petl_ray.tasks.table import TASKS, task_of

__all__ = [
    "DIRECTIONS",
    "TASKS",
    "Batch",
    "Encoded",
    "LateLogits",
    "Outcomes",
    "RowScore",
    "Task",
    "confusion",
    "from_confusion",
    "measure",
    "task_of",
]
