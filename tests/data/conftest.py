"""Small files of rows in every format, and `prepare` on them in one call."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Dataset
from petl_ray.data import DataSource, lock, prepare
from tests.plainstep import PlainStep

Rows = dict[str, list[dict[str, Any]]]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    listed = list(rows)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(listed[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(listed)
    return path


def tickets(count: int, start: int = 0) -> list[dict[str, Any]]:
    """`count` different rows with two labels; the same numbers, the same rows."""
    topics = ("refund", "bug")
    return [
        {"text": f"ticket {number} is about a {topics[number % 2]}", "label": topics[number % 2]}
        for number in range(start, start + count)
    ]


class Kitchen:
    """Prepares rows below one directory and reads back what came out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made = 0
        self.step = PlainStep(root / "steps")

    def prepare(self, train: Path | str, **rules: Any) -> Dataset:
        self.made += 1
        self.step = PlainStep(self.root / f"steps-{self.made}")
        source = DataSource(**{"task": "tickets", "train": str(train), **rules})
        outcome = prepare(lock(source), step=self.step)
        assert isinstance(outcome, Dataset)
        return outcome

    def rows(self, dataset: Dataset) -> Rows:
        directory = self.step.fetch(dataset)
        return {
            side: [json.loads(line) for line in (directory / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()]
            for side in ("train", "validation", "test")
        }

    def card(self, dataset: Dataset) -> dict[str, Any]:
        card: dict[str, Any] = json.loads((self.step.fetch(dataset) / "card.json").read_text(encoding="utf-8"))
        return card

    def sides(self, dataset: Dataset) -> dict[str, str]:
        """Text (or prompt) → side."""
        return {row.get("text", row.get("prompt")): side for side, rows in self.rows(dataset).items() for row in rows}


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


@pytest.fixture
def make_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def make(rows: Iterable[Mapping[str, Any]], name: str = "emails.jsonl") -> Path:
        return write_jsonl(tmp_path / name, rows)

    return make
