"""Questions of miniature searches, for the tests of this folder."""

from __future__ import annotations

import json
from typing import Any

from petl_ray.artifact import Dataset
from petl_ray.tuning import SearchSpec
from tests.plainstep import PlainStep
from tests.tuning.fake_training.spec import MiniSpec

SPACE: dict[str, Any] = {"learning_rate": {"loguniform": [1e-4, 1e-1]}, "method.rank": [2, 4, 8, 16]}


def ask(recipe: MiniSpec | None = None, **fields: Any) -> SearchSpec:
    """A search over SPACE, eight trials in generations of four unless told otherwise."""
    known = {"recipe": recipe or MiniSpec(), "space": SPACE, "trials": 8, "generation": 4}
    return SearchSpec(**{**known, **fields})


def rows(step: PlainStep, task: str = "mini") -> Dataset:
    """A tiny dataset with test rows that no search may see."""
    names = ("train.jsonl", "validation.jsonl", "test.jsonl", "card.json")
    for name in names:
        (step.out / name).write_text(json.dumps({"task": task, "file": name}) + "\n")
    return Dataset(task=task, task_type="classification", files=step.keep(*names), rows={"train": 1})
