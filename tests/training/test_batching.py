"""Batches: every row once, little padding, the same for the same seed, found from the step alone."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petl_ray.models import LoadedBase
from petl_ray.training.batching import (
    LENGTH_STEP,
    SMALL_STEP,
    batches_of_epoch,
    horizon,
    padded_lengths,
    padding_share,
    split_to_budget,
    steps_of_epoch,
)

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=700)


@given(lengths=LENGTHS, rows=st.integers(1, 24), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_as_many_batches_as_announced(
    lengths: list[int], rows: int, seed: int, epoch: int
) -> None:
    batches = batches_of_epoch(lengths, rows, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == steps_of_epoch(len(lengths), rows)
    assert all(1 <= len(batch) <= rows for batch in batches)


def test_batches_follow_from_seed_and_epoch_alone() -> None:
    lengths = [random.Random(0).randint(3, 60) for _ in range(500)]
    assert batches_of_epoch(lengths, 16, 1, 2) == batches_of_epoch(lengths, 16, 1, 2)
    assert batches_of_epoch(lengths, 16, 1, 2) != batches_of_epoch(lengths, 16, 1, 3)
    assert batches_of_epoch(lengths, 16, 1, 2) != batches_of_epoch(lengths, 16, 2, 2)


def test_padding_is_a_few_percent_where_random_batches_waste_a_third() -> None:
    chance = random.Random(1)
    lengths = [max(3, min(64, round(chance.lognormvariate(2.7, 0.5)))) for _ in range(4000)]
    order = list(range(4000))
    chance.shuffle(order)
    shuffled = [order[at : at + 16] for at in range(0, 4000, 16)]
    assert padding_share(shuffled, lengths) > 0.3
    assert padding_share(batches_of_epoch(lengths, 16, 0, 0), lengths) < 0.05


@given(lengths=LENGTHS, most_rows=st.integers(1, 50), tokens=st.none() | st.integers(1, 2000))
def test_parts_keep_order_and_stay_within_rows_and_tokens(
    lengths: list[int], most_rows: int, tokens: int | None
) -> None:
    rows = list(range(len(lengths)))
    parts = split_to_budget(rows, lengths, most_rows, tokens)
    assert [row for part in parts for row in part] == rows
    for part in parts:
        assert len(part) <= most_rows
        padded = len(part) * max(lengths[row] for row in part)
        assert tokens is None or padded <= tokens or len(part) == 1


@given(lengths=LENGTHS, rows=st.integers(1, 64), spare=st.integers(0, 5), device=st.sampled_from(["cpu", "cuda"]))
def test_rows_of_small_steps_are_padded_to_their_bucket_and_those_of_large_ones_not_at_all(
    lengths: list[int], rows: int, spare: int, device: str
) -> None:
    """No further than to the next multiple of a few tokens, nor over the limit of the spec."""
    loaded, most = SimpleNamespace(device=SimpleNamespace(type=device)), max(lengths) + spare
    padded = padded_lengths(lengths, rows, most, cast("LoadedBase", loaded))
    if device == "cpu" and rows * sum(lengths) >= SMALL_STEP * len(lengths):
        assert padded == lengths
        return
    for length, bucket in zip(lengths, padded, strict=True):
        assert length <= bucket < length + LENGTH_STEP and bucket <= most
        assert bucket % LENGTH_STEP == 0 or bucket == most


def test_nothing_is_split_into_nothing() -> None:
    assert split_to_budget([], [], 4, None) == []


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"), [(96, 8, 2, 24), (97, 8, 1, 13), (96, 8, 0.5, 6), (3, 8, 0.1, 1)]
)
def test_the_horizon_counts_whole_steps(rows: int, batch: int, epochs: float, steps: int) -> None:
    assert horizon(rows, batch, epochs) == steps
