"""Bootstrap intervals of figures over rows, and of paired differences: numpy only, the same numbers for the same seed.

Rows are drawn with replacement, the same rows for every system, so a difference is paired. Intervals are BCa: bias
corrected and accelerated (Efron 1987, J. Am. Stat. Assoc. 82, 171-185; Efron & Tibshirani 1993, An Introduction to the
Bootstrap, ch. 14), the acceleration by the jackknife over rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from petl_ray.artifact import Interval
from petl_ray.tasks.metrics import Outcomes, confusion, from_confusion

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_CELLS = 1 << 22  # numbers held at once while resampling: 32 MiB of float64
_TIE = 1e-12  # two figures this near are one figure
_LARGEST_LOSS = 700.0  # exp of it is still a float


@dataclass(frozen=True)
class Sampled:
    """One figure of one system: `value`, [resamples] bootstrap `draws`, [rows] values with one row `left_out`."""

    value: float
    draws: Floats
    left_out: Floats

    def __sub__(self, other: Sampled) -> Sampled:
        """The paired difference: both sides drew the same rows."""
        return Sampled(self.value - other.value, self.draws - other.draws, self.left_out - other.left_out)

    def interval(self, level: float) -> Interval:
        """The BCa interval at `level`, rounded to six digits so that it does not depend on the order of sums."""
        low, high = bca(self, level)
        return Interval(value=round(self.value, 6), low=round(low, 6), high=round(high, 6), level=level)


def sample(systems: Mapping[str, Outcomes], metric: str, labels: int, resamples: int, seed: int) -> dict[str, Sampled]:
    """One figure of every system, by name, over the same resamples of the same rows.

    `labels` is the number of label indices in use. Raises ValueError where systems answered different numbers of rows,
    or none.
    """
    counts = {len(outcomes.references) for outcomes in systems.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"systems answered {sorted(counts)} rows; a paired comparison needs the same rows, at least one"
        )
    rows = counts.pop()
    draws: dict[str, list[Floats]] = {name: [] for name in systems}
    for picked in resampled_rows(rows, resamples, seed, cells_each=max(rows, labels * labels)):
        for name, outcomes in systems.items():
            draws[name].append(_measured(outcomes, metric, labels, picked))
    everything = np.arange(rows)[None, :]
    return {
        name: Sampled(
            float(_measured(outcomes, metric, labels, everything)[0]),
            np.concatenate(draws[name]),
            leave_one_out(outcomes, metric, labels),
        )
        for name, outcomes in systems.items()
    }


def resampled_rows(rows: int, resamples: int, seed: int, cells_each: int) -> Iterator[Indices]:
    """[chunk, rows] row numbers drawn with replacement, `resamples` in all; the seed alone decides which."""
    generator = np.random.Generator(np.random.PCG64(seed))
    chunk = max(1, min(resamples, _CELLS // cells_each))
    for start in range(0, resamples, chunk):
        yield generator.integers(0, rows, size=(min(chunk, resamples - start), rows), dtype=np.int64)


def leave_one_out(outcomes: Outcomes, metric: str, labels: int) -> Floats:
    """[rows]: the metric of all rows but one. With a single row there is nothing to leave out: its own value."""
    rows = len(outcomes.references)
    if rows < 2:
        return _measured(outcomes, metric, labels, np.arange(rows)[None, :])
    if metric in ("loss", "perplexity"):
        losses = outcomes.loss_sums.sum() - outcomes.loss_sums
        return _of_losses(metric, losses, outcomes.units.sum() - outcomes.units)
    counts = confusion(outcomes.references, outcomes.predictions, labels)
    cells, which = np.unique(outcomes.references * labels + outcomes.predictions, return_inverse=True)
    values = np.empty(len(cells))
    for index, cell in enumerate(cells):  # rows of one cell of the confusion table have the same value
        truth, guess = divmod(int(cell), labels)
        counts[truth, guess] -= 1
        values[index] = from_confusion(metric, counts)
        counts[truth, guess] += 1
    return values[which]


def bca(sampled: Sampled, level: float) -> tuple[float, float]:
    """Lower and upper bound at `level`; the value itself where no resample differs from it."""
    draws, value = sampled.draws, sampled.value
    equal = np.abs(draws - value) <= _TIE
    if equal.all():
        return value, value
    normal = NormalDist()
    below = (np.count_nonzero((draws < value) & ~equal) + 0.5 * np.count_nonzero(equal)) / len(draws)
    edge = 0.5 / len(draws)  # the farthest share that this many draws can tell from 0 and 1
    bias = normal.inv_cdf(min(max(below, edge), 1 - edge))
    acceleration = _acceleration(sampled.left_out)
    shares = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        shifted = bias + normal.inv_cdf(tail)
        room = 1 - acceleration * shifted  # at or below 0 a handful of rows decides all: the outermost draw it is
        shares.append(normal.cdf(bias + shifted / room) if room > 0 else float(shifted > 0))
    low, high = np.quantile(draws, shares)
    return float(low), float(high)


def _acceleration(left_out: Floats) -> float:
    """Efron & Tibshirani (14.15): skewness of the jackknife values over 6; 0 where they do not vary."""
    away = left_out.mean() - left_out
    spread = float((away**2).sum())
    if spread <= _TIE**2:
        return 0.0
    return float((away**3).sum() / (6 * spread**1.5))


def _measured(outcomes: Outcomes, metric: str, labels: int, picked: Indices) -> Floats:
    """[chunk]: the metric over each row of `picked`, [chunk, rows] row numbers."""
    if metric in ("loss", "perplexity"):
        return _of_losses(metric, outcomes.loss_sums[picked].sum(-1), outcomes.units[picked].sum(-1))
    return from_confusion(metric, confusion(outcomes.references[picked], outcomes.predictions[picked], labels))


def _of_losses(metric: str, losses: Floats, units: Indices) -> Floats:
    mean = losses / np.maximum(units, 1)
    return mean if metric == "loss" else np.exp(np.minimum(mean, _LARGEST_LOSS))
