"""Whether contestants compute the same before they are timed: equal weights, and losses step by step that agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from petl_ray.bank import Bank

STEPS = 3
# Of losses over the first STEPS steps, as shares of the first loss: rounding stays below, another formula does not. bf16
# has eight bits of precision, and AdamW's first steps are as large for a small gradient as for a large one.
LIMITS = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}


def apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference between two series of losses, over the first of `theirs`; infinite where one is no number."""
    if not all(math.isfinite(loss) for loss in (*ours, *theirs)):
        return math.inf
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) / abs(theirs[0])


def check(
    contestants: Mapping[str, Callable[[], float]], precisions: Mapping[str, str] | None = None, steps: int = STEPS
) -> None:
    """Take the first `steps` steps of everybody; raises AssertionError where somebody's losses are not the first one's.

    A contestant's limit is that of its precision; fp32, where none is named.
    """
    told = {name: [step() for _ in range(steps)] for name, step in contestants.items()}
    first, theirs = next(iter(told.items()))
    for name, losses in told.items():
        limit = LIMITS[(precisions or {}).get(name, "fp32")]
        found = apart(losses, theirs)
        assert found <= limit, f"{name} and {first} are {found:.2g} apart, over {limit:g}: {losses} and {theirs}"


def wear(model: Any, bank: Bank) -> set[str]:
    """Give a PEFT model the very numbers of the bank's slot 0; returns the names that the model has no place for."""
    theirs = bank.parameters(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                short = name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", "")
                parameter.copy_(theirs.pop(short))
    return set(theirs)
