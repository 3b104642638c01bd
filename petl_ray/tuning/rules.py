"""Who goes on at a rung: pure rules over the scores that were recorded there."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple

from petl_ray.fingerprint import sha256_of

Mode = Literal["max", "min"]


def better(mode: Mode, score: float, other: float) -> bool:
    """Whether `score` is strictly better than `other`."""
    return score > other if mode == "max" else score < other


class Standing(NamedTuple):
    """What a trial came to at a rung: its score, and the lot it has drawn there, which tells equal scores apart.

    A few steps in, many trials may answer with the commonest label alone and score alike. Their losses then say who has
    moved least and not who learns: kept by loss, every trial of 64 that came to learn SST-2 would have been stopped.
    """

    score: float
    lot: str = ""

    @classmethod
    def drawn(cls, score: float, *where: int) -> Standing:
        """A standing whose lot hangs on `where` alone: the search's seed, the rung and the trial's number."""
        return cls(score, sha256_of(["lot", *where]))

    def rank(self, mode: Mode) -> tuple[float, str]:
        """Higher is better."""
        return self.score if mode == "max" else -self.score, self.lot


def asha_keeps(mode: Mode, standing: Standing, standings: Sequence[Standing], reduction: float) -> bool:
    """Whether `standing` is among the best 1/reduction of `standings` (itself included), of equal scores by lot.

    The rule of successive halving (Jamieson and Talwalkar 2016) over all that was ever scored at this rung, as in
    ASHA (Li et al. 2018); at least one always goes on.
    """
    places = max(1, int(len(standings) / reduction))
    cutoff = sorted((one.rank(mode) for one in standings), reverse=True)[places - 1]
    return standing.rank(mode) >= cutoff


def median_keeps(mode: Mode, score: float, scores: Sequence[float]) -> bool:
    """Whether `score` is not worse than the median of `scores` at this rung (Golovin et al. 2017, simplified)."""
    return not better(mode, median(scores), score)
