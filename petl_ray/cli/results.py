"""The table at the end of a run: for each task what was chosen, what it is worth, what it weighs."""

from __future__ import annotations

from rich.table import Table

from petl_ray.artifact import Interval
from petl_ray.cli.screen import out, size
from pipelines.summary import Summary, TaskSummary

_ROLES = ("majority", "base", "head_only", "default", "tuned")
_TITLES = {"head_only": "head only", "default": "default recipe"}


def print_results(summary: Summary) -> None:
    """Print the table of a summary to stdout, and why each candidate was promoted or refused."""
    roles = [role for role in _ROLES if any(role in task.scores for task in summary.tasks)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in (
        "task",
        "put forward",
        *(_TITLES.get(role, role) for role in roles),
        "trained",
        "bytes",
        "version",
        "s",
    ):
        table.add_column(head)
    for task in summary.tasks:
        table.add_row(
            f"{task.task}\n{task.metric}, n={task.rows}",
            _recipe(task),
            *(_score(task, role) for role in roles),
            f"{task.trained_share:.2%}",
            f"{size(task.adapter_bytes)}\nof {size(task.full_model_bytes)}",
            f"{task.version if task.version is not None else '-'}\n{task.status}",
            f"{task.seconds:.0f}",
        )
    console = out if out.is_terminal else type(out)(highlight=False, width=160)
    console.print(table)
    for rival, gain in summary.pooled.items():
        told = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        console.print(f"all tasks together: {told} accuracy over {_TITLES.get(rival, rival)}", markup=False)
    for task in summary.tasks:
        for reason in task.reasons:
            console.print(f"{task.task}: {reason}", markup=False, soft_wrap=True)
    for key, error in summary.failures.items():
        console.print(f"FAILED {key}: {error}", markup=False, style="red", soft_wrap=True)
    if summary.note:
        console.print(summary.note, markup=False)


def _score(task: TaskSummary, role: str) -> str:
    if role not in task.scores:
        return ""
    told = _interval(task.scores[role])
    if role in task.differences:
        difference = task.differences[role]
        told += f"\nours {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    return told


def _interval(scored: Interval) -> str:
    return f"{scored.value:.3f} [{scored.low:.3f}, {scored.high:.3f}]"


def _recipe(task: TaskSummary) -> str:
    recipe = task.recipe
    shape = {"lora": "rank", "bottleneck": "size"}.get(str(recipe["kind"]))
    targets = recipe.get("targets", "")
    words = [str(recipe["kind"]), f"{shape} {recipe[shape]}" if shape else "", _targets(targets)]
    searched = f"{task.trials} trials, tuning {task.tuning_gain:+.3f}" if task.trials else "not searched"
    return " ".join(word for word in words if word) + f"\nlr {recipe['learning_rate']:.2g}, {searched}"


def _targets(targets: object) -> str:
    return ", ".join(targets) if isinstance(targets, list | tuple) else str(targets)
