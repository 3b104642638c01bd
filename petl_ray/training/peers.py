"""The other workers of a data-parallel training, or nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class Peers(Protocol):
    """Workers that hold equal copies and each compute their share of every batch's rows."""

    @property
    def rank(self) -> int:
        """This worker, 0…count - 1."""

    @property
    def count(self) -> int:
        """Workers in all."""

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` on every worker by the sum over all of them."""


@dataclass(frozen=True)
class Alone:
    """One worker: every row is its own."""

    rank: int = 0
    count: int = 1

    def add_up(self, tensor: torch.Tensor) -> None:
        """The sum over one worker is what it has."""
