"""Draws of many slots at once: the hash that is written down, on each slot's own, evenly spread."""

from __future__ import annotations

import pytest
import torch

from petl_ray.bank.chance import Columns, limits, mask, row_keys

CPU = torch.device("cpu")
SEEDS, ROWS = [3, 2**61 + 7, 0, 3], [2, 4, 1, 2]


def drawn(
    seeds: list[int], rows: list[int], site: int, keep: list[float], tokens: int = 5, width: int = 16
) -> torch.Tensor:
    return mask(
        row_keys(seeds, rows, tokens, CPU), Columns(CPU).keys(site, width), *limits(keep, rows, torch.float32, CPU)
    )


def mixed(x: int) -> int:
    """splitmix64 of a counter, in Python's own numbers."""
    x = x * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def kept(seed: int, row: int, token: int, site: int, feature: int, keep: float) -> bool:
    key = mixed((mixed(seed) + mixed(row * 2**20 + token)) % 2**64) ^ mixed(feature + (site + 1) * 2**20)
    x = key % 2**32 * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return (x + 2**31) % 2**32 < int(keep * 2**32)


def test_every_draw_is_the_hash_of_its_seed_and_place() -> None:
    keep, found = [0.9, 0.5, 0.7, 0.6], drawn(SEEDS, ROWS, 11, [0.9, 0.5, 0.7, 0.6])
    at = 0
    for seed, rows, share in zip(SEEDS, ROWS, keep, strict=True):
        for row in range(rows):
            expected = [[float(kept(seed, row, token, 11, f, share)) for f in range(16)] for token in range(5)]
            assert torch.equal(found[at], torch.tensor(expected) / torch.tensor(share))
            at += 1


def test_neighbours_padding_and_order_move_no_draw() -> None:
    keep = [0.9, 0.5, 1.0, 0.9]
    whole = drawn(SEEDS, ROWS, 4, keep)
    assert torch.equal(drawn(SEEDS[1:2], ROWS[1:2], 4, keep[1:2]), whole[2:6])
    assert torch.equal(drawn(SEEDS, ROWS, 4, keep, tokens=9)[:, :5], whole)
    assert torch.equal(whole[:2], whole[-2:]), "one seed, one answer"
    assert bool((whole[6] == 1.0).all()), "who drops nothing out keeps everything as it is"


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_draws_are_even_over_rows_tokens_and_features_and_unlike_between_slots_and_sites(keep: float) -> None:
    found = drawn([5, 6], [8, 8], 1, [keep, keep], tokens=64, width=256)
    other = drawn([5, 6], [8, 8], 2, [keep, keep], tokens=64, width=256)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.01)
    drops = (found == 0).float() - (1 - keep)
    deviation = (keep * (1 - keep)) ** 0.5
    for over in ((0, 1), (0, 2), (1, 2), (2,)):
        means = drops.mean(over)
        spread = means.std() / (deviation / (drops.numel() / means.numel()) ** 0.5)
        assert abs(float(spread) - 1) < 4 / (2 * means.numel()) ** 0.5, "as independent draws would spread"
    pairs = [
        (drops[:8], drops[8:]),  # slots
        (drops, (other == 0).float() - (1 - keep)),  # sites
        (drops[:, 1:], drops[:, :-1]),
        (drops[:, :, 1:], drops[:, :, :-1]),
        (drops[1:], drops[:-1]),
    ]
    for one, two in pairs:
        assert abs(float((one * two).mean()) / deviation**2) < 5 / one.numel() ** 0.5
