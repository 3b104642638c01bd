"""Which side a row stands on: by a hash against a threshold, or by time. Sides with own files are left alone."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Sequence

from petl_ray.data.rows import Row
from petl_ray.data.spec import Split
from petl_ray.data.times import seconds


def split_off(rows: Sequence[Row], split: Split, wanted: Collection[str]) -> dict[str, list[Row]]:
    """`rows` as `train` and the sides in `wanted` (of `validation`, `test`).

    By row and by group the side depends on the row and on the rule alone, never on the other rows: it stays when data
    grows. By time it depends on the boundaries, which come from the shares unless the plan fixes them.
    """
    sides: dict[str, list[Row]] = {"train": [], **{side: [] for side in wanted}}
    if split.by == "time":
        return _by_time(rows, sides, time_boundaries(rows, split, wanted))
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


def time_boundaries(rows: Sequence[Row], split: Split, wanted: Collection[str]) -> dict[str, float]:
    """From which time on (seconds since 1970) a row belongs to `validation` and to `test`; infinite for none.

    Rows of one moment stay together, on the newer side; a side may so become larger than its share.
    """
    times = sorted(float(row.place) for row in rows if row.place is not None)
    fixed = {"test": split.test_from, "validation": split.validation_from}
    boundaries = {"test": float("inf"), "validation": float("inf")}
    older = times
    for side, share in (("test", split.test), ("validation", split.validation)):
        given, taken = fixed[side], round(len(times) * share)
        if side not in wanted:
            continue
        if given is not None:
            boundaries[side] = seconds(given)
        elif taken and older:
            boundaries[side] = older[max(0, len(older) - taken)]
        older = older[: bisect_left(older, boundaries[side])]
    return boundaries


def _by_time(rows: Sequence[Row], sides: dict[str, list[Row]], boundaries: dict[str, float]) -> dict[str, list[Row]]:
    for row in rows:
        at = float(row.place or 0.0)
        side = "test" if at >= boundaries["test"] else "validation" if at >= boundaries["validation"] else "train"
        sides[side].append(row)
    return sides
