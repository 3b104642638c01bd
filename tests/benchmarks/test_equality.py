"""Contestants whose losses part are found out before they are timed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from benchmarks.equality import LIMITS, STEPS, apart, check


def told(*losses: float) -> Callable[[], float]:
    return iter(losses).__next__


def test_a_difference_is_a_share_of_the_first_loss() -> None:
    assert apart([2.0, 1.0], [2.0, 1.5]) == pytest.approx(0.25)
    assert apart([1.0], [1.0]) == 0.0


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_what_is_no_number_agrees_with_nothing(strange: float) -> None:
    assert apart([1.0, strange], [1.0, 1.0]) == math.inf
    assert apart([strange], [strange]) == math.inf


def test_everybody_takes_the_same_steps_within_the_limit_of_its_precision() -> None:
    near = 1.0 + LIMITS["bf16"] / 2
    check({"one": told(1.0, 0.9, 0.8), "other": told(1.0, 0.9, 0.8), "low": told(near, 0.9, 0.8)}, {"low": "bf16"})
    with pytest.raises(AssertionError, match=r"low and one are 0\.01 apart, over 0\.001"):
        check({"one": told(1.0, 0.9, 0.8), "low": told(near, 0.9, 0.8)})


def test_a_later_step_is_looked_at_too_and_no_more_than_were_asked() -> None:
    assert STEPS == 3
    with pytest.raises(AssertionError, match="other and one"):
        check({"one": told(1.0, 0.9, 0.8), "other": told(1.0, 0.9, 0.9)})
    check({"one": told(1.0, 0.9), "other": told(1.0, 0.5)}, steps=1)
