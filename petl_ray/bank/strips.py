"""Blocks that lie at equal distances, copied as one: how slots' own numbers come into the rows of a stack and back.

Layers repeat, so among a slot's blocks many of one shape lie equally far apart, in the slot's own tensor as in a row. A
strip is such a series; one strided copy moves it for many slots at once, and nothing as large as the numbers is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

REACH = 16  # how many blocks of its shape behind the first are tried as the second


@dataclass(frozen=True)
class Strip:
    """`count` blocks of `shape`, the first at `source` among a slot's numbers and at `target` in a row, where it has
    room for `padded`; each next one lies `source_step` and `target_step` further."""

    source: int
    target: int
    shape: tuple[int, ...]
    padded: tuple[int, ...]
    count: int = 1
    source_step: int = 0
    target_step: int = 0

    def here(self, slots: Tensor) -> Tensor:
        """Its numbers in slots' own [slots, numbers]: a view [slots, count, *shape]."""
        return _view(slots, self.source, self.source_step, self.count, self.shape, self.shape)

    def there(self, rows: Tensor) -> Tensor:
        """Its numbers in rows of a stack [slots, numbers of a row]: a view [slots, count, *shape]."""
        return _view(rows, self.target, self.target_step, self.count, self.shape, self.padded)


def strips(blocks: Sequence[Strip]) -> list[Strip]:
    """Single blocks gathered into as long series as are found, each block in one of them."""
    left = {(block.source, block.target, block.shape, block.padded): block for block in sorted(blocks, key=_source)}
    found = []
    while left:
        first = next(iter(left.values()))
        alike = [one for one in left.values() if (one.shape, one.padded) == (first.shape, first.padded)]
        series = max((_series(first, second, left) for second in alike[1 : 1 + REACH]), key=len, default=[first])
        for one in series:
            del left[one.source, one.target, one.shape, one.padded]
        if len(series) > 1:
            steps = (series[1].source - first.source, series[1].target - first.target)
            first = replace(first, count=len(series), source_step=steps[0], target_step=steps[1])
        found.append(first)
    return found


def _series(
    first: Strip, second: Strip, left: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], Strip]
) -> list[Strip]:
    """As many blocks as follow one another at the distance of the first two."""
    by, on, series = second.source - first.source, second.target - first.target, [first]
    source, target = second.source, second.target
    while (one := left.get((source, target, first.shape, first.padded))) is not None:
        series.append(one)
        source, target = source + by, target + on
    return series


def _source(block: Strip) -> int:
    return block.source


def _view(whole: Tensor, start: int, step: int, count: int, shape: tuple[int, ...], padded: tuple[int, ...]) -> Tensor:
    strides = [1]
    for size in reversed(padded[1:]):
        strides.insert(0, strides[0] * size)
    return whole.as_strided(
        (len(whole), count, *shape),
        (whole.stride(0), step, *strides[: len(shape)]),
        whole.storage_offset() + start,
    )
