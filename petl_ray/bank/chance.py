"""Dropout of many slots at once: every draw is a hash of (the slot's seed, row, token, site, feature).

There is no generator whose state a neighbour could move, nothing is drawn in an order, and how far rows are padded does
not matter; a recomputation draws the same. A key per row and token meets a key per site and feature, both well mixed
(splitmix64, Steele et al. 2014), and two rounds of multiplying in 32 bits mix them: few operations, all in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2⁶⁴ over the golden ratio, as int64 wraps
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_ROUNDS = (0x7FEB352D, 0x846CA68B - 2**32)  # odd multipliers that mix 32 bits well (Wellons 2018)
_ROOM = 1 << 20  # more tokens and features than a row has


def row_keys(seeds: Sequence[int], rows: Sequence[int], length: int, device: torch.device) -> Tensor:
    """int32 [sum of rows, length]: a key for each token of segments with so many `rows`; each follows from its own
    segment's seed, its row within the segment, and the token."""
    where = [(seed, row) for seed, count in zip(seeds, rows, strict=True) for row in range(count)]
    both = onto(torch.tensor(where), device)
    tokens = torch.arange(length, device=device)
    return _mixed(_mixed(both[:, :1]) + _mixed(both[:, 1:] * _ROOM + tokens)).to(torch.int32)


class Columns:
    """int32 [features] for each site: made once a bank, and as many as the sites that slots drop out at."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[int, int], Tensor] = {}

    def keys(self, site: int, features: int) -> Tensor:
        """A key for each feature of the input of one site."""
        if (site, features) not in self._known:
            places = torch.arange(features, device=self._device) + (site + 1) * _ROOM
            self._known[site, features] = _mixed(places).to(torch.int32)
        return self._known[site, features]


def limits(
    keep: Sequence[float], rows: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For segments kept with probabilities `keep`, one a row: the highest number that is kept, int32, and what it is
    multiplied with, in `dtype`."""
    each = [one for one, count in zip(keep, rows, strict=True) for _ in range(count)]
    highest = torch.tensor([min(2**31 - 1, int(one * 2**32) - 2**31 - 1) for one in each], dtype=torch.int32)
    return onto(highest, device), onto(torch.tensor([1 / one for one in each]).to(dtype), device)


def mask(rows: Tensor, columns: Tensor, highest: Tensor, by: Tensor) -> Tensor:
    """What a site's input [rows, tokens, features] is multiplied with: zero, or a row's `by`."""
    drawn = (rows.unsqueeze(-1) ^ columns).mul_(_ROUNDS[0])
    drawn ^= (drawn >> 15).bitwise_and_(0x1FFFF)  # a shift that brings zeros, not the sign
    drawn.mul_(_ROUNDS[1])
    return torch.where(drawn <= highest.view(-1, 1, 1), by.view(-1, 1, 1), 0.0)


def onto(host: Tensor, device: torch.device) -> Tensor:
    """A small tensor on its device; a GPU is not waited for."""
    return host.to(device, non_blocking=True)


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's finish of int64 numbers, which wrap; what is shifted in are zeros."""
    x = x * _GOLDEN
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX[0]
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX[1]
    return x ^ ((x >> 31) & (2**33 - 1))
