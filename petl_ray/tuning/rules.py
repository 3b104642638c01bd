"""Who goes on at a rung: pure rules over the scores that were recorded there."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

Mode = Literal["max", "min"]


def better(mode: Mode, score: float, other: float) -> bool:
    """Whether `score` is strictly better than `other`."""
    return score > other if mode == "max" else score < other


def asha_keeps(mode: Mode, score: float, scores: Sequence[float], reduction: float) -> bool:
    """Whether `score` is among the best 1/reduction of `scores` (itself included); ties with the last one go on.

    The rule of successive halving (Jamieson and Talwalkar 2016) over all that was ever scored at this rung, as in
    ASHA (Li et al. 2018); at least one always goes on.
    """
    places = max(1, int(len(scores) / reduction))
    cutoff = sorted(scores, reverse=mode == "max")[places - 1]
    return not better(mode, cutoff, score)


def median_keeps(mode: Mode, score: float, scores: Sequence[float]) -> bool:
    """Whether `score` is not worse than the median of `scores` at this rung (Golovin et al. 2017, simplified)."""
    return not better(mode, median(scores), score)
