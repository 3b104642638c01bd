"""Events on their way out: a bounded queue that never makes work wait and drops the oldest progress when full."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from petl_ray.telemetry.events import Event

_PLAIN = (str, int, float, bool, type(None))


class Waiting(NamedTuple):
    """An event and the moment of this process's monotonic clock when it was posted."""

    event: Event
    posted_s: float


class Outbox:
    """Takes events from any thread at once; somebody else drains it a few times a second.

    `limit` bounds what waits. When it is full the oldest progress gives way to what is newer; events named
    `step.…` and `run.…` are the story of the run and are never dropped.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._story: list[Waiting] = []
        self._progress: deque[Waiting] = deque(maxlen=limit)

    def post(self, run_id: str, event: str, step: str | None = None, /, **facts: Any) -> None:
        """Queue one event; never blocks on anything slower than a lock."""
        waiting = Waiting(Event(run_id, event, step, plain(facts)), time.monotonic())
        with self._lock:
            if event.startswith(("step.", "run.")):
                self._story.append(waiting)
            else:
                self._progress.append(waiting)

    def drain(self) -> list[Waiting]:
        """Everything that waits, oldest first; the outbox is empty afterwards."""
        with self._lock:
            taken = [*self._story, *self._progress]
            self._story.clear()
            self._progress.clear()
        return sorted(taken, key=lambda waiting: waiting.posted_s)

    def put_back(self, taken: list[Waiting]) -> None:
        """Queue again what could not be delivered, before what is newer; progress beyond the limit is dropped."""
        with self._lock:
            self._story[:0] = [one for one in taken if one.event.event.startswith(("step.", "run."))]
            older = [one for one in taken if not one.event.event.startswith(("step.", "run."))]
            self._progress = deque([*older, *self._progress], maxlen=self._limit)


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`facts` as JSON values: numbers of other libraries become floats, everything else its text."""
    return {str(key): _plain(value) for key, value in facts.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None  # JSON has no NaN
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "__float__"):
        return _plain(float(value))
    return str(value)
