"""Trying again what the world was too busy for: bounded exponential backoff with jitter, from the error's delay."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from petl_ray.errors import TemporaryError

TRIES = 6
_LONGEST_S = 60.0
_SLICE_S = 0.5

T = TypeVar("T")


def pause_s(error: TemporaryError, tries: int) -> float:
    """Seconds to wait after failure `tries`: the error's delay, doubled each time, times 0.5…1.5, at most 60."""
    return float(min(_LONGEST_S, error.delay_s * 2 ** (tries - 1)) * random.uniform(0.5, 1.5))


def wait(seconds: float, check: Callable[[], None]) -> None:
    """Sleep, calling `check` twice a second so that a request to stop is heard."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, _SLICE_S))


def patiently(call: Callable[[], T], check: Callable[[], None], tries: int = TRIES) -> T:
    """The answer of `call`, which is tried again after each TemporaryError; the last one is raised."""
    for tried in range(1, tries):
        try:
            return call()
        except TemporaryError as error:
            wait(pause_s(error, tried), check)
    return call()
