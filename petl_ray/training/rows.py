"""A dataset's rows as tokens: read from the files of a Dataset, encoded by its task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from petl_ray.errors import DataError
from petl_ray.tasks import Encoded, Task, task_of


@dataclass(frozen=True)
class Rows:
    """Train and validation rows of one task. `lengths` are tokens per training row."""

    name: str
    task: Task
    labels: tuple[str, ...]
    train: tuple[Encoded, ...]
    validation: tuple[Encoded, ...]

    @cached_property
    def tokens(self) -> int:
        """Of all rows together."""
        return sum(row.length_tokens for row in (*self.train, *self.validation))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training row."""
        return [row.length_tokens for row in self.train]

    @property
    def truncated(self) -> int:
        """Training rows that were cut to the length limit."""
        return sum(row.truncated for row in self.train)


def read_rows(directory: Path, task_type: str, tokenizer: Any, max_length: int, template: str) -> Rows:
    """Rows below `directory` (train.jsonl, validation.jsonl, card.json), encoded.

    Raises DataError for a split without rows, another task type than asked for, or a label outside the card's.
    """
    card = json.loads((directory / "card.json").read_text(encoding="utf-8"))
    name, found, labels = str(card["task"]), str(card["task_type"]), tuple(card.get("labels", ()))
    if found != task_type:
        raise DataError(
            f"{name}: task_type", f"the data are for {found}", f"the training is for {task_type}", "Make them equal"
        )
    task = task_of(task_type)
    splits = []
    for split in ("train", "validation"):
        rows = _lines(directory / f"{split}.jsonl")
        if not rows:
            do = "Give more rows or a larger share" if split == "validation" else "Give it rows"
            raise DataError(f"{name}: {split}.jsonl", "no rows", "training needs both sides", do)
        strange = [row for row in rows if labels and not 0 <= int(row["label"]) < len(labels)]
        if strange:
            why = f"the card names {len(labels)} labels"
            raise DataError(f"{name}: {split}.jsonl", f"label {strange[0]['label']}", why, "Prepare the data again")
        splits.append(tuple(task.encode(rows, tokenizer, max_length, template)))
    return Rows(name, task, labels, splits[0], splits[1])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
