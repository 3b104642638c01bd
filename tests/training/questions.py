"""Small real questions for training tests: rows over the tiny bases' words, a Dataset of them, a spec."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

from petl_ray.artifact import Dataset
from petl_ray.models import BaseSpec, LockedBase, resolve
from petl_ray.training import TrainSpec
from tests.bases import WORDS
from tests.plainstep import PlainStep

SIGNS = {"bad": ("awful", "hate", "broken"), "good": ("great", "love", "thanks"), "plain": ("email", "box", "account")}


def locked(directory: Path, precision: str = "fp32", quantization: str = "none") -> LockedBase:
    """The tiny base in `directory`, pinned."""
    fields = {"source": str(directory), "precision": precision, "quantization": quantization}
    return resolve(BaseSpec.model_validate(fields))


def classification_rows(count: int, seed: int, labels: int = 3) -> list[dict[str, Any]]:
    """Texts of 3 to 20 words with one telling word each."""
    chance = random.Random(seed)
    names = sorted(SIGNS)[:labels]
    rows = []
    for index in range(count):
        label = chance.randrange(labels)
        words = [chance.choice(WORDS[:20]) for _ in range(chance.randint(2, 19))]
        words.insert(chance.randrange(len(words) + 1), chance.choice(SIGNS[names[label]]))
        rows.append({"id": f"{seed}-{index:05d}", "text": " ".join(words), "label": label})
    return rows


def completion_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """A colour and a number in words; the completion turns them round."""
    chance = random.Random(seed)
    rows = []
    for index in range(count):
        colour, number = chance.choice(("red", "blue")), chance.choice(("one", "two", "three"))
        prompt = f"the {colour} box {number} "
        rows.append({"id": f"{seed}-{index:05d}", "prompt": prompt, "completion": f"{number} {colour}"})
    return rows


def dataset(step: PlainStep, *, task: str = "moods", labels: int = 3, rows: int = 96, causal: bool = False) -> Dataset:
    """A Dataset kept below the step's root."""
    task_type = "causal_lm" if causal else "classification"
    names = [] if causal else sorted(SIGNS)[:labels]
    make = completion_rows if causal else partial(classification_rows, labels=labels)
    splits = {"train": make(rows, 1), "validation": make(32, 2), "test": make(8, 3)}
    for split, lines in splits.items():
        (step.out / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (step.out / "card.json").write_text(json.dumps({"task": task, "task_type": task_type, "labels": names}))
    return Dataset(
        task=task,
        task_type=task_type,
        labels=tuple(names),
        rows={split: len(lines) for split, lines in splits.items()},
        files=step.keep("train.jsonl", "validation.jsonl", "test.jsonl", "card.json"),
    )


def recipe(base: LockedBase, **changes: Any) -> TrainSpec:
    """A quick recipe; keyword arguments replace fields."""
    fields: dict[str, Any] = {"base": base, "epochs": 2.0, "batch_size": 8, "learning_rate": 5e-3, "max_length": 32}
    return TrainSpec.model_validate(fields | changes)
