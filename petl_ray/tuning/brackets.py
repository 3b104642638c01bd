"""HyperBand's brackets (Li et al. 2018): how soon a trial may be cut, settled by its number alone."""

from __future__ import annotations

import math


class Brackets:
    """Bracket s lets its trials come to rung s before the first cut; in the last bracket nobody is cut.

    A bracket that halves h times is given ceil(rungs / (h + 1) * reduction ** h) shares of the trials, Li et al.'s
    numbers, with which every bracket costs about the same. Shares are dealt out one by one in the order of the trials'
    numbers, so that a search of any length holds all brackets. Trial 0 is in the last one.
    """

    def __init__(self, rungs: int, reduction: float) -> None:
        halvings = [rungs - 1 - bracket for bracket in range(rungs)]
        self._shares = [math.ceil(rungs / (count + 1) * reduction**count) for count in halvings]
        self._dealt = [0] * rungs
        self._brackets = [rungs - 1]

    def of(self, number: int) -> int:
        """The bracket of trial `number`."""
        while len(self._brackets) <= number:
            order = range(len(self._shares))
            bracket = min(order, key=lambda one: ((self._dealt[one] + 1) / self._shares[one], one))
            self._dealt[bracket] += 1
            self._brackets.append(bracket)
        return self._brackets[number]
