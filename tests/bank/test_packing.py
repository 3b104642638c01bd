"""Which slots share a product: those of one kind whose ranks have the same power of two above them, padded to it."""

from __future__ import annotations

import pytest

from petl_ray.bank import Bank
from petl_ray.bank.packing import RANK_AT
from petl_ray.methods import BottleneckSpec, HeadSpec, Ia3Spec, LoraSpec
from petl_ray.methods.sites import anatomy
from petl_ray.models.loading import LoadedBase
from tests.bank.rows import rows
from tests.bank.test_grouped import Counted


def test_ranks_are_padded_to_the_next_power_of_two_and_stand_in_families_by_it(bert: LoadedBase) -> None:
    bank, ranks = Bank(bert, 8, grouped=True), (17, 5, 3, 9, 4, 16, 1, 8)
    for slot, rank in enumerate(ranks):
        bank.fill(slot, LoraSpec(rank=rank), 3, seed=slot)
    slots = [bank._occupant(slot) for slot in range(len(ranks))]
    pack = bank._packs.pack([slots[place] for place in bank._packs.order(slots, [2] * len(slots))])
    families = [sorted(slot.method.rank for slot in family.slots) for family in pack.families]
    assert families == [[1, 3, 4], [5, 8], [9, 16], [17]]
    for family, rank in zip(pack.families, (4, 8, 16, 32), strict=True):
        padded = zip(family.frame.keys, family.frame.shapes, strict=True)
        assert {shape[RANK_AT[role]] for (_, role), shape in padded if role in RANK_AT} == {rank}
    bank.detach()


@pytest.mark.parametrize(
    ("method", "family"),
    [
        (BottleneckSpec(size=6), ("bottleneck/gelu", 8)),
        (BottleneckSpec(size=6, activation="relu"), ("bottleneck/relu", 8)),
        (LoraSpec(rank=8), ("lora/none", 8)),
        (Ia3Spec(), ("lora/none", 4)),
        (HeadSpec(), ("", 4)),
    ],
    ids=lambda one: getattr(one, "kind", None),
)
def test_a_family_is_of_one_kind(bert: LoadedBase, method: object, family: tuple[str, int]) -> None:
    bank = Bank(bert, 1, grouped=True)
    bank.fill(0, method, 3, seed=0)
    assert bank._packs.outline(bank._occupant(0)).family == family
    bank.detach()


def products(loaded: LoadedBase, *ranks: int) -> int:
    """Batched products of one pass of slots of these ranks."""
    bank = Bank(loaded, len(ranks), grouped=True)
    for slot, rank in enumerate(ranks):
        bank.fill(slot, LoraSpec(rank=rank), 3, seed=slot)
    with Counted() as seen:
        bank.forward([rows(slot, 2, 6) for slot in range(len(ranks))])
    bank.detach()
    return seen.names.count("bmm")


def test_slots_of_one_family_are_one_product_at_every_site(bert: LoadedBase) -> None:
    one, sites = products(bert, 4), len(anatomy(bert.model).linears)
    assert products(bert, 3, 4) == products(bert, 1, 2, 3, 4) == one
    assert products(bert, 4, 5) == products(bert, 3, 4, 5, 8) == one + sites
    assert products(bert, 4, 5, 9) == one + 2 * sites
