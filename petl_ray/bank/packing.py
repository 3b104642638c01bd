"""Parameters of many slots stacked, so that one product serves all of them.

Slots of one family (the same kind of parts, ranks of one power of two) share a matrix [slots, numbers]: each slot's flat
tensor padded with zeros to the family's frame. It is made once a pass, in the base's type, and its gradient is added to
the slots' own fp32 gradients once a pass. A slot's row holds its own numbers and zeros, never a neighbour's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from petl_ray.bank.chance import Columns, onto
from petl_ray.bank.slot import DOWN, UP, Group, Slot
from petl_ray.bank.strips import Strip, strips

RANK_AT = {  # which dimension of a role is the rank or the bottleneck's width
    DOWN: 0,
    UP: 1,
    "bottleneck_down.weight": 0,
    "bottleneck_down.bias": 0,
    "bottleneck_up.weight": 1,
}
WHOLE = ("weight", "bias")  # roles of replaced modules: computed with in fp32
LEAST_RANK = 4
KEPT_PACKS = 16


class Form(NamedTuple):
    """What a slot does at a site: parts of one form are computed together."""

    op: str
    activation: str
    roles: frozenset[str]


class Block(NamedTuple):
    """One tensor of a slot: its place among the slot's numbers and its shape."""

    site: str
    role: str
    name: str
    group: Group
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Outline:
    """What a slot holds, without its values; slots that hold the same share one."""

    number: int
    family: tuple[str, int]
    blocks: tuple[Block, ...]
    size: int
    forms: dict[str, Form]


class Frame:
    """Where each block lies in a family's rows: in the order of the slots' own flat tensors, each as large as its largest."""

    def __init__(self, outlines: Sequence[Outline]) -> None:
        shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        order: dict[tuple[str, str], tuple[Group, str]] = {}
        for outline in outlines:
            for block in outline.blocks:
                key = (block.site, block.role)
                shape = _padded(block, outline.family[1])
                shapes[key] = tuple(map(max, shapes.get(key, shape), shape))
                order[key] = (block.group, block.name)
        self.keys = sorted(shapes, key=order.__getitem__)
        self.place = {key: place for place, key in enumerate(self.keys)}
        self.shapes = [shapes[key] for key in self.keys]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.starts = [sum(self.sizes[:place]) for place in range(len(self.sizes))]
        ups = [place for place, (_, role) in enumerate(self.keys) if role == UP]
        self.up = (self.starts[ups[0]], self.starts[ups[-1]] + self.sizes[ups[-1]]) if ups else (0, 0)
        self.width = sum(self.sizes)
        self.strips = {outline: self._strips(outline) for outline in outlines}

    def _strips(self, outline: Outline) -> list[Strip] | None:
        """How an outline's blocks lie in a row; None where a slot's numbers are a row as they are."""
        places = [self.place[block.site, block.role] for block in outline.blocks]
        found = [
            Strip(block.start, self.starts[place], block.shape, self.shapes[place])
            for block, place in zip(outline.blocks, places, strict=True)
        ]
        same = all(one.source == one.target and one.shape == one.padded for one in found)
        return None if same and outline.size == self.width else strips(found)


@dataclass(eq=False)
class Family:
    """Slots that share a frame, `first` of them in the pack's order; `alike` are runs of one outline (begin, end)."""

    frame: Frame
    first: int
    slots: list[Slot]
    alike: list[tuple[Outline, int, int]]
    scales: Tensor  # what multiplies B A x, [slots, 1] fp32

    def stacked(self) -> Tensor:
        """All slots' numbers, fp32 [slots, numbers of the frame]; B is scaled already."""
        values = [slot.flat.values for slot in self.slots]
        if len(self.alike) == 1 and self.frame.strips[self.alike[0][0]] is None:
            whole = torch.stack(values)
        else:
            whole = values[0].new_zeros(len(values), self.frame.width)
            for outline, begin, end in self.alike:
                rows, own = torch.stack(values[begin:end]), self.frame.strips[outline]
                if own is None:
                    whole[begin:end].copy_(rows)
                for strip in own or ():
                    strip.there(whole[begin:end]).copy_(strip.here(rows))
        start, stop = self.frame.up
        whole[:, start:stop].mul_(self.scales)
        return whole

    def add_gradients(self, pieces: Sequence[Tensor | None]) -> None:
        """Add what arrived for each block ([slots, size], None for nothing) to the slots' own gradients."""
        known = next((piece for piece in pieces if piece is not None), None)
        if known is None:
            return
        blank = [
            known.new_zeros(len(self.slots), size) if piece is None else piece
            for piece, size in zip(pieces, self.frame.sizes, strict=True)
        ]
        whole = torch.cat(blank, 1).float()
        start, stop = self.frame.up
        whole[:, start:stop].mul_(self.scales)
        for outline, begin, end in self.alike:
            mine, own = whole[begin:end], self.frame.strips[outline]
            if own is not None:
                rows, mine = mine, whole.new_empty(end - begin, outline.size)
                for strip in own:
                    strip.here(mine).copy_(strip.there(rows))
            for slot in self.slots[begin:end]:
                slot.hold_gradients()
            torch._foreach_add_([slot.flat.gradients for slot in self.slots[begin:end]], list(mine.unbind(0)))


class Pack:
    """Slots in an order in which those of a family stand together."""

    def __init__(
        self, slots: Sequence[Slot], outlines: Sequence[Outline], families: list[Family], columns: Columns
    ) -> None:
        self.slots, self.families, self.columns = slots, families, columns
        self.family_of = [place for place, family in enumerate(families) for _ in family.slots]
        self._outlines = outlines
        self._patterns: dict[str, tuple[Form | None, ...]] = {}
        self._known: dict[tuple[Form | None, ...], tuple[Form | None, ...]] = {}

    def forms(self, site: str) -> tuple[Form | None, ...]:
        """What each slot does at a site. Equal answers are one object."""
        if site not in self._patterns:
            found = tuple(outline.forms.get(site) for outline in self._outlines)
            self._patterns[site] = self._known.setdefault(found, found)
        return self._patterns[site]

    def blocks(self, dtype: torch.dtype) -> list[list[Tensor]]:
        """Per family each block's numbers of all slots [slots, size], differentiable: replaced modules in fp32, the rest
        in `dtype`."""
        anchor = next((p for slot in self.slots for p in slot.parameters.values()), None)
        flat = list(_Blocks.apply(anchor, self, dtype))  # type: ignore[no-untyped-call]
        return [[flat.pop(0) for _ in family.frame.sizes] for family in self.families]


class _Blocks(torch.autograd.Function):
    """Stacks once, and once everything that used a block has sent its gradient, adds them to the slots' own."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor | None, pack: Pack, dtype: torch.dtype) -> tuple[Tensor, ...]:
        ctx.pack = pack
        ctx.set_materialize_grads(False)
        pieces: list[Tensor] = []
        for family in pack.families:
            whole = family.stacked()
            exact = torch.split(whole, family.frame.sizes, 1)
            cast = exact if dtype == torch.float32 else torch.split(_cast(whole, dtype), family.frame.sizes, 1)
            keys = family.frame.keys
            pieces += [e if role in WHOLE else c for (_, role), e, c in zip(keys, exact, cast, strict=True)]
        return tuple(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        at = 0
        for family in ctx.pack.families:
            count = len(family.frame.sizes)
            family.add_gradients(gradients[at : at + count])
            at += count
        return None, None, None


def _cast(whole: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in another type. Each row begins where the fast products of GPUs can read: at a multiple of 32 bytes."""
    count, width = whole.shape
    return whole.new_empty((count, -(-width // 16) * 16), dtype=dtype)[:, :width].copy_(whole)


class Packs:
    """Outlines, frames and packs of one bank, each made once and kept while slots that are there need it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._numbers = device, count()
        self._outlines: WeakValueDictionary[tuple[Any, ...], Outline] = WeakValueDictionary()
        self._of_slot: WeakKeyDictionary[Slot, Outline] = WeakKeyDictionary()
        self._frames: WeakValueDictionary[frozenset[Outline], Frame] = WeakValueDictionary()  # a pack holds its own
        self._packs: dict[tuple[Slot, ...], Pack] = {}  # the one used last stands last
        self._columns = Columns(device)

    def order(self, slots: Sequence[Slot], rows: Sequence[int]) -> list[int]:
        """The places of `slots` in an order that lets as many as possible share a product."""

        def like(place: int) -> tuple[Any, ...]:
            outline = self.outline(slots[place])
            return outline.family, rows[place], outline.number, place

        return sorted(range(len(slots)), key=like)

    def pack(self, slots: Sequence[Slot]) -> Pack:
        """The pack of slots in an order that `order` gave."""
        key = tuple(slots)
        pack = self._packs.pop(key, None) or self._make(key)
        while len(self._packs) >= KEPT_PACKS:
            del self._packs[next(iter(self._packs))]
        self._packs[key] = pack
        return pack

    def forget(self, slot: Slot) -> None:
        """The slot has been emptied."""
        self._of_slot.pop(slot, None)
        self._packs = {key: pack for key, pack in self._packs.items() if slot not in key}

    def outline(self, slot: Slot) -> Outline:
        """What a slot holds."""
        if slot not in self._of_slot:
            forms = {
                site: Form(live.plan.op, live.plan.activation, frozenset(live.values))
                for site, live in slot.parts.items()
            }
            blocks = tuple(_blocks(slot))
            ranks = [block.shape[RANK_AT[block.role]] for block in blocks if block.role in RANK_AT]
            rank = LEAST_RANK
            while rank < max(ranks, default=0):
                rank *= 2
            kind = " ".join(sorted({f"{form.op}/{form.activation}" for form in forms.values() if form.op != "replace"}))
            key = (blocks, tuple(forms.items()))
            outline = self._outlines.get(key)
            if outline is None:
                outline = Outline(next(self._numbers), (kind, rank), blocks, slot.flat.values.numel(), forms)
                self._outlines[key] = outline
            self._of_slot[slot] = outline
        return self._of_slot[slot]

    def _make(self, slots: Sequence[Slot]) -> Pack:
        outlines = [self.outline(slot) for slot in slots]
        families: list[Family] = []
        begin = 0
        for end in range(1, len(slots) + 1):
            if end == len(slots) or outlines[end].family != outlines[begin].family:
                families.append(self._family(begin, slots[begin:end], outlines[begin:end]))
                begin = end
        return Pack(slots, outlines, families, self._columns)

    def _family(self, first: int, slots: Sequence[Slot], outlines: Sequence[Outline]) -> Family:
        alike, begin = [], 0
        for end in range(1, len(slots) + 1):
            if end == len(slots) or outlines[end] is not outlines[begin]:
                alike.append((outlines[begin], begin, end))
                begin = end
        held = frozenset(outlines)
        frame = self._frames.get(held) or Frame(sorted(held, key=lambda outline: outline.number))
        self._frames[held] = frame
        scales = onto(torch.tensor([[slot.scale] for slot in slots], dtype=torch.float32), self._device)
        return Family(frame, first, list(slots), alike, scales)


def _blocks(slot: Slot) -> list[Block]:
    found = []
    for site, live in slot.parts.items():
        for role, name in live.plan.names().items():
            group = next(
                group for group, (start, stop) in slot.flat.groups.items() if start <= slot.flat.ranges[name][0] < stop
            )
            found.append(Block(site, role, name, group, slot.flat.ranges[name][0], tuple(live.values[role].shape)))
    return found


def _padded(block: Block, rank: int) -> tuple[int, ...]:
    at = RANK_AT.get(block.role)
    return tuple(rank if place == at else size for place, size in enumerate(block.shape))
