"""Strips move every number of every block to its place and back, in few copies where layers repeat."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from petl_ray.bank import Bank
from petl_ray.bank.packing import Frame
from petl_ray.bank.strips import Strip, strips
from petl_ray.methods import LoraSpec
from petl_ray.models.loading import LoadedBase

BLOCKS = some.lists(
    some.tuples(some.sampled_from([(2, 3), (3, 2), (4,)]), some.integers(0, 2), some.integers(0, 3)), max_size=20
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(BLOCKS)
def test_every_number_goes_to_its_place_and_back(found: list[tuple[tuple[int, ...], int, int]]) -> None:
    blocks, source, target = [], 0, 0
    for shape, more, gap in found:
        padded = (shape[0] + more, *shape[1:])
        blocks.append(Strip(source, target + gap, shape, padded))
        source += torch.Size(shape).numel()
        target += gap + torch.Size(padded).numel()
    slots = torch.arange(1.0, 1 + 2 * source).view(2, source)
    expected, rows, back = torch.zeros(2, target), torch.zeros(2, target), torch.zeros(2, source)
    for block in blocks:
        size = torch.Size(block.padded).numel()
        room = expected[:, block.target : block.target + size].view(2, *block.padded)
        mine = slots[:, block.source : block.source + torch.Size(block.shape).numel()].view(2, *block.shape)
        room[(slice(None), *map(slice, block.shape))] = mine
    for strip in strips(blocks):
        strip.there(rows).copy_(strip.here(slots))
        strip.here(back).copy_(strip.there(rows))
    assert torch.equal(rows, expected) and torch.equal(back, slots)
    assert sum(strip.count for strip in strips(blocks)) == len(blocks)


def test_layers_that_repeat_are_few_copies(minilm_base: LoadedBase) -> None:
    bank = Bank(minilm_base, 2, grouped=True)
    bank.fill(0, LoraSpec(rank=5, targets="all-linear"), 3, seed=0)
    bank.fill(1, LoraSpec(rank=8, targets="all-linear"), 3, seed=1)
    outlines = [bank._packs.outline(bank._occupant(slot)) for slot in (0, 1)]
    frame = Frame(outlines)
    five, eight = (frame.strips[outline] for outline in outlines)
    assert eight is None, "the larger is a row as it is"
    assert five is not None and len(five) <= 40 and len(outlines[0].blocks) > 70
    bank.detach()
