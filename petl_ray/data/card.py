"""The data card: what was read, what was taken out and why, what is left. No times and no paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from petl_ray.data.rows import Row
from petl_ray.data.spec import DataSpec


def describe(
    spec: DataSpec, sides: Mapping[str, Sequence[Row]], labels: tuple[str, ...], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The card as JSON: rows, labels and lengths of each side, the rules, the sources' digests, and `facts`."""
    pins = {side: getattr(spec, side) for side in ("train", "validation", "test")}
    return {
        "task": spec.task,
        "task_type": spec.task_type,
        "labels": list(labels),
        "sides": {side: _side(rows, labels) for side, rows in sides.items()},
        "split": spec.split.model_dump(mode="json", exclude_none=True),
        "sources": {side: pin.digest for side, pin in pins.items() if pin is not None},
        **facts,
    }


def _side(rows: Sequence[Row], labels: tuple[str, ...]) -> dict[str, Any]:
    counted = Counter(row.label for row in rows)
    texts = [f"{row.first} {row.second}" if row.second is not None else row.first for row in rows]
    return {
        "rows": len(rows),
        "labels": {label: counted[label] for label in labels},
        "characters": _percentiles([len(text) for text in texts]),
        "words": _percentiles([len(text.split()) for text in texts]),
    }


def _percentiles(lengths: list[int]) -> dict[str, int]:
    """Median, 90th and 99th percentile (nearest rank) and the longest."""
    ordered = sorted(lengths)
    if not ordered:
        return {}
    rank = {f"p{part}": ordered[max(0, -(-part * len(ordered) // 100) - 1)] for part in (50, 90, 99)}
    return {**rank, "longest": ordered[-1]}
