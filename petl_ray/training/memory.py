"""Out of memory: how it is recognised, on GPUs and on CPUs, and the budget that shrinks when it happens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# oneDNN, which computes on CPUs, says no more than that a primitive could not be made when it cannot allocate.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@dataclass
class TokenBudget:
    """Padded tokens that one forward pass may hold; None while nothing has failed yet."""

    tokens: int | None = None
    halvings: int = 0

    def halve(self, failed_tokens: int) -> None:
        """A pass over `failed_tokens` ran out of memory: from now on at most half of that."""
        self.tokens = max(1, failed_tokens // 2)
        self.halvings += 1
