"""Rows taken out before anything is learned: copies, test rows that leaked into training, labels never seen there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import groupby

from petl_ray.data.nearness import hint
from petl_ray.data.rows import Row, normalised
from petl_ray.errors import DataError


def without_copies(rows: Iterable[Row]) -> tuple[list[Row], int, int]:
    """One row of each text (of each prompt and completion), how many copies went, how many of those disagreed.

    Where copies carry different labels the commonest stands, of equally common ones the first by name. Which row stands
    does not depend on the order of the input.
    """
    kept: list[Row] = []
    copies = conflicts = 0
    for _, same in groupby(sorted(rows, key=_order), key=_twin):
        twins = list(same)
        label = min(Counter(row.label for row in twins).items(), key=lambda counted: (-counted[1], counted[0]))[0]
        kept.append(next(row for row in twins if row.label == label))
        copies += len(twins) - 1
        conflicts += sum(row.label != label for row in twins)
    return kept, copies, conflicts


def _twin(row: Row) -> tuple[bytes, str]:
    """What copies have in common: for a completion (a row without label) also its text."""
    return row.key, "" if row.label else normalised(row.second or "")


def _order(row: Row) -> tuple[bytes, str, str, str, str]:
    return (*_twin(row), row.first, row.second or "", row.label)


def without_leaks(sides: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """The sides with no text on two of them, and how many rows each lost.

    What also stands in the test side is taken out of validation and training, what stands in validation out of
    training; the test side stays whole.
    """
    seen: set[bytes] = set()
    cleaned: dict[str, list[Row]] = {}
    lost: dict[str, int] = {}
    for side in ("test", "validation", "train"):
        cleaned[side] = [row for row in sides[side] if row.key not in seen]
        lost[side] = len(sides[side]) - len(cleaned[side])
        if side != "train":
            seen.update(row.key for row in cleaned[side])
    return cleaned, {side: count for side, count in lost.items() if side != "test"}


def at_most(rows: list[Row], limit: int | None) -> tuple[list[Row], int]:
    """At most `limit` rows, those with the lowest keys (as good as drawn by lot), and how many were left out."""
    if limit is None or len(rows) <= limit:
        return rows, 0
    return sorted(rows, key=_order)[:limit], len(rows) - limit


def settle_labels(train: Iterable[Row], fixed: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """The labels in the order of their numbers: as fixed by the plan, else those of the training rows, sorted.

    Labels that are all whole numbers sort as numbers. Raises DataError if fewer than two are left to tell apart.
    """
    present = {row.label for row in train}
    if len(present) < 2:
        only = f"every training row is {next(iter(present))!r}" if present else "there is no training row"
        raise DataError(f"{where}: labels", only, "there is nothing to tell apart", "Give rows of two labels or more")
    if fixed is not None:
        return fixed
    numbers = all(label.removeprefix("-").isdecimal() for label in present)
    return tuple(sorted(present, key=(lambda label: (int(label), label)) if numbers else None))


def without_unseen(rows: list[Row], seen: Collection[str], side: str, where: str, drop: bool) -> tuple[list[Row], int]:
    """The rows whose label occurs in training, and how many others there were; DataError for those unless `drop`."""
    unseen = Counter(row.label for row in rows if row.label not in seen)
    if unseen and not drop:
        label, count = min(unseen.items())
        raise DataError(
            f"{where}: {side}: label {label!r}",
            f"{count} rows" + (f", and {len(unseen) - 1} more labels like it" if len(unseen) > 1 else ""),
            f"no training row has it, so it cannot be learned. {hint(label, seen)}",
            "Add training rows, or say on_unseen_label: drop",
        )
    return [row for row in rows if row.label in seen], sum(unseen.values())
