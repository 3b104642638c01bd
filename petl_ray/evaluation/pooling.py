"""One figure over many tasks: the mean gain in accuracy over a rival, pooled over all held-out rows.

Rows are drawn within each task (a stratified bootstrap: Davison & Hinkley 1997, Bootstrap Methods and their
Application, section 3.2), so that each task keeps its weight, its number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from petl_ray.artifact import Interval

Gains = NDArray[np.float64]


def gains(predictions: Path, rival: str) -> Gains | None:
    """[rows]: 1 where the candidate alone is right, -1 where the rival alone is, 0 elsewhere; None without that rival."""
    table = pq.read_table(predictions)
    name = f"{rival}.prediction"
    if "label" not in table.column_names or name not in table.column_names:
        return None
    truth, ours, theirs = (table[column].to_pylist() for column in ("label", "candidate.prediction", name))
    return np.array(
        [(our == true) - (their == true) for true, our, their in zip(truth, ours, theirs, strict=True)], float
    )


def pooled(tasks: Sequence[Gains], resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean gain over the rows of all `tasks` with its percentile interval; raises ValueError without rows."""
    rows = sum(len(task) for task in tasks)
    if not rows:
        raise ValueError("nothing to pool: no task has rows")
    generator = np.random.Generator(np.random.PCG64(seed))
    draws = np.zeros(resamples)
    for task in tasks:
        picked = generator.integers(0, len(task), size=(resamples, len(task)))
        draws += task[picked].sum(axis=1)
    low, high = np.quantile(draws / rows, [(1 - level) / 2, (1 + level) / 2])
    value = float(sum(float(task.sum()) for task in tasks) / rows)
    return Interval(value=round(value, 6), low=round(float(low), 6), high=round(float(high), 6), level=level)


def pooled_over(predictions: Mapping[str, Path], rivals: Sequence[str]) -> dict[str, Interval]:
    """By rival: the pooled gain over those tasks that have it; rivals that no task has are left out."""
    found = {}
    for rival in rivals:
        parts = [part for path in predictions.values() if (part := gains(path, rival)) is not None]
        if parts:
            found[rival] = pooled(parts)
    return found
