"""Which micro-batches share a pass: on a GPU those of about one length, and small ones of any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as some

from petl_ray.training import rounds
from petl_ray.training.occupant import Occupant
from petl_ray.training.rounds import Round, plan_rounds, round_length, round_tokens
from petl_ray.training.sharing import Sharing

GPU = Sharing(shared=True, alike=False, tokens=None)
CPU = Sharing(shared=True, alike=True, tokens=1024)


@dataclass(eq=False)
class Someone:
    """As much of an occupant as rounds are planned with: rows of one length."""

    rows: int
    length: int
    frozen_depth: int = 0
    late: bool = False

    def parts(self, tokens: int | None) -> list[list[int]]:
        return [list(range(self.rows))]

    def longest(self, rows: Sequence[int]) -> int:
        return self.length


def planned(crowd: list[Someone], sharing: Sharing) -> list[Round]:
    return plan_rounds(cast("list[Occupant]", crowd), None, sharing)


crowds = some.lists(some.builds(Someone, some.integers(1, 64), some.integers(1, 512), some.integers(0, 2)), min_size=1)


@given(crowds)
def test_everybody_is_in_one_round(crowd: list[Someone]) -> None:
    for sharing in (GPU, CPU):
        assert sorted(id(each) for round_ in planned(crowd, sharing) for each, _ in round_) == sorted(map(id, crowd))


@given(crowds)
def test_a_large_pass_of_a_gpu_is_padded_to_at_most_the_square_root_of_two(crowd: list[Someone]) -> None:
    for round_ in planned(crowd, GPU):
        if round_tokens(round_) > rounds.JOINED_TOKENS:
            assert all(round_length(round_) <= 2**0.5 * each.longest(rows) + 1 for each, rows in round_)


@pytest.mark.parametrize(
    ("crowd", "sizes"),
    [
        ([Someone(8, length) for length in (16, 64, 24, 128)], [4]),  # launches cost more than padding
        ([Someone(64, length) for length in (16, 512, 500, 17)], [2, 2]),
        ([Someone(64, 64)] * 1 + [Someone(64, 64) for _ in range(63)], [64]),  # however many tokens
        ([Someone(64, 64, frozen_depth=2), Someone(64, 64)], [1, 1]),  # one begins behind layers that the other needs
        ([Someone(8, 64, frozen_depth=2), Someone(8, 64)], [2]),
    ],
)
def test_rounds_of_a_gpu(crowd: list[Someone], sizes: list[int]) -> None:
    assert [len(round_) for round_ in planned(crowd, GPU)] == sizes


def test_on_a_cpu_only_rows_of_one_length_share_a_pass_up_to_its_bound() -> None:
    crowd: list[Any] = [Someone(8, 32), Someone(8, 40), *(Someone(8, 32) for _ in range(4))]
    assert [[each.length for each, _ in round_] for round_ in planned(crowd, CPU)] == [[32] * 4, [32], [40]]
