"""One thing that happened, as plain facts, and whoever wants to hear of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Event:
    """One thing that happened: `event` names it (`step.done`, `train.step`), `facts` are plain JSON values.

    `step` is the step's name (hex), or None where the event is about the whole run. `at` is seconds since 1970.
    """

    run_id: str
    event: str
    step: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0


class Sink(Protocol):
    """Hears of events, in order. It is called from one background thread and should return quickly."""

    def __call__(self, event: Event) -> None: ...
