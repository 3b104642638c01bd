"""Where on the horizon a step stands, and what multiplies the learning rate there: warm-up, then a decay or none."""

from __future__ import annotations

import math
from typing import Literal


def step_at(share: float, steps: int) -> int:
    """The step at that share of a horizon of `steps`; at least one."""
    return min(steps, max(1, round(share * steps)))


def rate_factor(step: int, steps: int, warmup_share: float, schedule: Literal["linear", "cosine", "constant"]) -> float:
    """What multiplies the learning rate at 0-based `step` of `steps`, in (0, 1].

    Warm-up takes ceil(warmup_share * steps) steps and its first step is already above 0; the last step of a decay is
    above 0 as well, so that no step is computed in vain. Cosine as in Loshchilov & Hutter 2017 (one half period).
    """
    warmup = math.ceil(warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    gone = (step - warmup) / max(steps - warmup, 1)
    if schedule == "linear":
        return 1.0 - gone
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * gone))
    return 1.0
