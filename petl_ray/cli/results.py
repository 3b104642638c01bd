"""The table at the end of a run: for each task what was chosen, what it is worth, what it weighs."""

from __future__ import annotations

from collections.abc import Container

from rich.console import Console
from rich.table import Table

from petl_ray.artifact import Interval
from petl_ray.cli.screen import complain, out, size
from pipelines.summary import Summary, TaskSummary

_ROLES = ("majority", "base", "head_only", "default", "tuned")
_TITLES = {"head_only": "head only", "default": "default\nrecipe", "tuned": "tuned"}
_WIDTH = 124  # where stdout is no terminal


def print_results(summary: Summary, told_already: Container[str] = ()) -> None:
    """Print the table of a summary to stdout, what tuning was worth, and why each candidate was promoted or refused.

    Failures go to stderr, but for those `told_already`.
    """
    console = out if out.is_terminal else Console(highlight=False, width=_WIDTH)
    if summary.tasks:
        console.print(_table(summary))
        console.print("Scores with 95 % bootstrap intervals on held-out rows.", style="dim")
    for task in summary.tasks:
        if task.tuning_gain is not None:
            told = f"{task.task}: tuning was worth {task.tuning_gain:+.3f} validation {task.metric} in {task.trials} trials."
            console.print(told, markup=False, soft_wrap=True)
    for rival, gain in summary.pooled.items():
        told = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        name = _TITLES.get(rival, rival).replace("\n", " ")
        console.print(f"All tasks together: {told} accuracy over {name}.", markup=False)
    for task in summary.tasks:
        for reason in task.reasons:
            console.print(f"{task.task}: {reason}", markup=False, soft_wrap=True)
    for key, error in summary.failures.items():
        if error not in told_already:
            complain(f"FAILED {key}: {error}")
    if summary.note:
        console.print(summary.note, markup=False)


def _table(summary: Summary) -> Table:
    roles = [role for role in _ROLES if any(role in task.scores for task in summary.tasks)]
    table = Table(box=None, pad_edge=False, header_style="bold", show_lines=False)
    table.add_column("task", no_wrap=True)
    table.add_column("put forward", no_wrap=True)
    for role in roles:
        table.add_column(_TITLES.get(role, role), no_wrap=True)
    for head in ("trained", "bytes", "version", "s"):
        table.add_column(head, no_wrap=True)
    for task in summary.tasks:
        table.add_row(
            f"{task.task}\n{task.metric}\n{task.rows} rows",
            _recipe(task),
            *(_score(task.scores.get(role)) for role in roles),
            f"{task.trained_share:.2%}",
            f"{size(task.adapter_bytes)}\nof {size(task.full_model_bytes)}",
            f"{task.version if task.version is not None else '-'}\n{task.status}",
            f"{task.seconds:.0f}",
        )
    return table


def _score(scored: Interval | None) -> str:
    return "" if scored is None else f"{scored.value:.3f}\n{scored.low:.3f}–{scored.high:.3f}"


def _recipe(task: TaskSummary) -> str:
    recipe = task.recipe
    shape = {"lora": "rank", "bottleneck": "size"}.get(str(recipe["kind"]))
    targets = recipe.get("targets", "")
    told = ", ".join(targets) if isinstance(targets, list | tuple) else str(targets)
    lines = [f"{recipe['kind']} {shape} {recipe[shape]}" if shape else str(recipe["kind"]), told]
    return "\n".join([*(line for line in lines if line), f"lr {recipe['learning_rate']:.2g}"])
