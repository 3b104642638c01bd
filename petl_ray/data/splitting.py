"""Which side a row stands on: by a hash against a threshold, or by time. Sides with own files are left alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from petl_ray.data.rows import Row
from petl_ray.data.spec import Split
from petl_ray.data.times import seconds


def split_off(rows: Sequence[Row], split: Split, wanted: Collection[str]) -> dict[str, list[Row]]:
    """`rows` as `train` and the sides in `wanted` (of `validation`, `test`).

    The side depends on the row and on the rule alone, never on the other rows: it stays when data grows.
    """
    sides: dict[str, list[Row]] = {"train": [], **{side: [] for side in wanted}}
    if split.by == "time":
        return _by_time(rows, sides, time_boundaries(split, wanted))
    test = split.test if "test" in wanted else 0.0
    validation = split.validation if "validation" in wanted else 0.0
    for row in rows:
        at = _position(split.seed, row.key if split.by == "row" else str(row.place).encode())
        side = "test" if at < test else "validation" if at >= 1.0 - validation else "train"
        sides[side].append(row)
    return sides


def _position(seed: int, of: bytes) -> float:
    """A number in [0, 1), evenly spread over what it is a hash of. Test takes the low end and validation the high one,
    so that changing one share moves no row between the other side and training."""
    return int.from_bytes(hashlib.sha256(b"%d\n" % seed + of).digest()[:6], "big") / 2.0**48


def time_boundaries(split: Split, wanted: Collection[str]) -> dict[str, float]:
    """From which instant on (seconds since 1970) a row belongs to `validation` and to `test`; infinite for none."""
    fixed = {"validation": split.validation_from, "test": split.test_from}
    return {side: seconds(at) if at is not None and side in wanted else float("inf") for side, at in fixed.items()}


def _by_time(rows: Sequence[Row], sides: dict[str, list[Row]], boundaries: dict[str, float]) -> dict[str, list[Row]]:
    for row in rows:
        at = float(row.place or 0.0)
        side = "test" if at >= boundaries["test"] else "validation" if at >= boundaries["validation"] else "train"
        sides[side].append(row)
    return sides
