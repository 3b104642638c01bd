"""Which rows make which batch: length-bucketed, the same for the same seed, found from the step number alone.

Nothing here keeps state: the batches of an epoch follow from (lengths, rows per step, seed, epoch), so a run that
continues needs to know no more than its step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from petl_ray.models import LoadedBase

LENGTH_STEP = (
    4  # of 2, 4 and 8 the one with which searches over short texts (10 to 25 tokens) took the fewest CPU-seconds
)
SMALL_STEP = 256  # tokens: below, a shared pass is worth more than the padding it takes (see `sharing.Sharing`)
WINDOW_BATCHES = 50  # rows are sorted by length within this many batches: padding of a few percent, order still random


def batches_of_epoch(lengths: Sequence[int], rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each batch of one epoch; every row once, `rows` a batch, the rest in one smaller batch."""
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(lengths))
    batches: list[list[int]] = []
    window = rows * WINDOW_BATCHES
    for start in range(0, len(order), window):
        rows_here = sorted(order[start : start + window].tolist(), key=lambda row: lengths[row])
        batches += [rows_here[at : at + rows] for at in range(0, len(rows_here), rows)]
    return [batches[index] for index in random.permutation(len(batches))]


def steps_of_epoch(rows_in_all: int, rows: int) -> int:
    """Batches of one epoch."""
    full_windows, rest = divmod(rows_in_all, rows * WINDOW_BATCHES)
    return full_windows * WINDOW_BATCHES + math.ceil(rest / rows)


def horizon(rows_in_all: int, rows: int, epochs: float) -> int:
    """Optimizer steps of the whole training, at least one."""
    return max(1, math.ceil(epochs * steps_of_epoch(rows_in_all, rows) - 1e-9))


def padded_lengths(lengths: Sequence[int], rows: int, most: int, loaded: LoadedBase) -> list[int]:
    """The length each row is padded to where it is the longest of its batch of `rows`; `most` is the spec's limit.

    Small steps share passes with their neighbours' and pay for it with padding to a multiple of LENGTH_STEP tokens, so
    that lengths meet; steps that keep the device busy by themselves are padded to their longest row and no further.
    """
    mean_tokens = rows * sum(lengths) / max(1, len(lengths))
    if mean_tokens >= (SMALL_STEP if loaded.device.type == "cpu" else math.inf):
        return list(lengths)
    return [max(length, min(most, -(-length // LENGTH_STEP) * LENGTH_STEP)) for length in lengths]


def split_to_budget(rows: Sequence[int], lengths: Sequence[int], most_rows: int, tokens: int | None) -> list[list[int]]:
    """`rows` cut into consecutive parts of at most `most_rows` rows and `tokens` padded tokens, never below one row."""
    parts: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row]) if parts and parts[-1] else lengths[row]
        fits = parts and len(parts[-1]) < most_rows and (tokens is None or (len(parts[-1]) + 1) * longest <= tokens)
        if fits:
            parts[-1].append(row)
        else:
            parts.append([row])
            longest = lengths[row]
    return parts


def padding_share(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Padded tokens that are padding, 0…1."""
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches if batch)
    real = sum(lengths[row] for batch in batches for row in batch)
    return 1.0 - real / padded if padded else 0.0
