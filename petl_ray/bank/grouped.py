"""The training layout for devices on which many small products cost more than few large ones.

Where neighbouring spans do the same at a site with equally many rows, they are one run: their parameters are stacked,
their rows cut into [spans, rows, width], and one batched product serves them all, forwards and backwards. Every entry of
such a product is one slot's alone, so what is not finite in one stays there. Sums may be taken in another order than
span by span: outcomes agree to rounding, not bit for bit. Dropout is a hash of each slot's own seed (see `chance`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from petl_ray.bank import chance
from petl_ray.bank.packing import Form, Pack
from petl_ray.bank.slot import DOWN, UP
from petl_ray.bank.training import ACTIVATIONS, Span, join
from petl_ray.bank.wiring import Wired
from petl_ray.models.products import Matrix, linear

PLAIN = frozenset({DOWN, UP})  # the roles of a LoRA and nothing else


@dataclass(frozen=True)
class Run:
    """Spans `first`…`last` of the pack, all with `form` (None: nothing is done), which cover rows `start`…`stop`; they are
    the slots `begin`…`end` of their family. `drops`: some of them may drop out."""

    form: Form | None
    family: int
    first: int
    last: int
    start: int
    stop: int
    begin: int
    end: int
    drops: bool

    @property
    def count(self) -> int:
        """How many spans it has."""
        return self.last - self.first


class GroupedLayout:
    """One joint forward of spans in the pack's order, padded to `length` tokens."""

    def __init__(self, spans: Sequence[Span], length: int, pack: Pack, dtype: torch.dtype) -> None:
        self.spans, self.length, self.rows, self.pack = spans, length, spans[-1].stop, pack
        self._counts = [span.stop - span.start for span in spans]
        self._blocks = pack.blocks(dtype)
        self._runs: dict[int, list[Run]] = {}
        self._keys: dict[int, Tensor] = {}
        self._limits: dict[tuple[float, ...], tuple[Tensor, Tensor]] = {}

    def linear(self, wired: Wired, x: Tensor) -> Tensor:
        """W x for all rows at once, then each run's own addition."""
        runs = self._runs_at(wired)
        if all(run.form is None for run in runs):
            return wired.base(x)
        flat = x.reshape(-1, x.shape[-1])
        if any("in_scale" in _roles(run) for run in runs):
            flat = self._each(runs, flat, lambda run, part: self._scaled(wired, run, part, "in_scale"))
        if all(run.form and run.form.op == "replace" for run in runs):
            y = self._each(runs, flat, lambda run, part: self._replaced(wired, run, part))
            return y.view(*x.shape[:-1], -1)
        masks = [self._mask(wired, run, x) for run in runs]
        if any(_roles(run) == PLAIN for run in runs):
            y = self._lora(wired, runs, masks, flat, x.shape)
        else:
            y = wired.base(flat.view(x.shape)).reshape(flat.shape[0], -1)
        if any(run.form and run.form.roles != PLAIN for run in runs):
            parts = zip(runs, self._cut(runs, flat), self._cut(runs, y), masks, strict=True)
            y = join([self._adapted(wired, *each) for each in parts])
        return y.view(*x.shape[:-1], -1)

    def norm(self, wired: Wired, x: Tensor) -> Tensor:
        """Each run through its own norms where it has them, else through the base's."""
        runs = self._runs_at(wired)
        if all(run.form is None for run in runs):
            return wired.base(x)

        def own(run: Run, part: Tensor) -> Tensor:
            if run.form is None:
                return wired.base(part)
            bias = self._value(wired, run, "bias").unsqueeze(1) if "bias" in _roles(run) else None
            weight = self._value(wired, run, "weight").unsqueeze(1)
            return wired.form.apply(part.view(run.count, -1, part.shape[-1]), weight, bias).view(part.shape)

        return self._each(runs, x.reshape(-1, x.shape[-1]), own).view(x.shape)

    def _runs_at(self, wired: Wired) -> list[Run]:
        forms = self.pack.forms(wired.site.name)
        if id(forms) not in self._runs:
            self._runs[id(forms)] = list(self._runs_of(forms))
        return self._runs[id(forms)]

    def _runs_of(self, forms: Sequence[Form | None]) -> list[Run]:
        runs, first = [], 0
        for last in range(1, len(forms) + 1):
            if last < len(forms) and self._together(forms, first, last):
                continue
            family = self.pack.family_of[first]
            offset = self.pack.families[family].first
            start, stop = self.spans[first].start, self.spans[last - 1].stop
            drops = any(span.seed is not None for span in self.spans[first:last])
            runs.append(Run(forms[first], family, first, last, start, stop, first - offset, last - offset, drops))
            first = last
        return runs

    def _together(self, forms: Sequence[Form | None], one: int, other: int) -> bool:
        if forms[one] is None or forms[other] is None:
            return forms[one] is forms[other]
        rows = [self.spans[place].stop - self.spans[place].start for place in (one, other)]
        family = self.pack.family_of
        return forms[one] == forms[other] and rows[0] == rows[1] and family[one] == family[other]

    def _value(self, wired: Wired, run: Run, role: str) -> Tensor:
        """A role's values of the slots of a run: [spans, …]."""
        frame = self.pack.families[run.family].frame
        place = frame.place[wired.site.name, role]
        whole = self._blocks[run.family][place].view(-1, *frame.shapes[place])
        return whole if run.count == len(whole) else whole[run.begin : run.end]

    def _cut(self, runs: Sequence[Run], flat: Tensor) -> list[Tensor]:
        if len(runs) == 1:
            return [flat]
        each = flat.shape[0] // self.rows
        return list(torch.split(flat, [(run.stop - run.start) * each for run in runs]))

    def _each(self, runs: Sequence[Run], flat: Tensor, make: Callable[[Run, Tensor], Tensor]) -> Tensor:
        return join([make(run, part) for run, part in zip(runs, self._cut(runs, flat), strict=True)])

    def _scaled(self, wired: Wired, run: Run, part: Tensor, role: str) -> Tensor:
        if role not in _roles(run):
            return part
        by = self._value(wired, run, role).unsqueeze(1)
        return (part.view(run.count, -1, part.shape[-1]) * by).view(part.shape)

    def _replaced(self, wired: Wired, run: Run, part: Tensor) -> Tensor:
        """Each slot's own linear map, in fp32."""
        x3, weight = part.view(run.count, -1, part.shape[-1]).float(), self._value(wired, run, "weight").transpose(1, 2)
        if "bias" not in _roles(run):
            return torch.bmm(x3, weight).flatten(0, 1)
        return torch.baddbmm(self._value(wired, run, "bias").unsqueeze(1), x3, weight).flatten(0, 1)

    def _adapted(self, wired: Wired, run: Run, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """What `training.adapted` computes for one span, for a run of them; plain LoRA is in y already."""
        if run.form is None or run.form.roles == PLAIN:
            return y
        x3, y3 = x.view(run.count, -1, x.shape[-1]), y.view(run.count, -1, y.shape[-1])
        if run.form.op == "replace":
            return self._replaced(wired, run, x).to(y.dtype)
        if run.form.op == "bottleneck":
            down = self._value(wired, run, "bottleneck_down.weight").transpose(1, 2)
            up = self._value(wired, run, "bottleneck_up.weight").transpose(1, 2)
            inner = torch.baddbmm(self._value(wired, run, "bottleneck_down.bias").unsqueeze(1), y3, down)
            inner = ACTIVATIONS[run.form.activation](inner)
            return (y3 + torch.baddbmm(self._value(wired, run, "bottleneck_up.bias").unsqueeze(1), inner, up)).view(
                y.shape
            )
        if DOWN in run.form.roles:
            low = torch.bmm(x3 if mask is None else x3 * mask, self._value(wired, run, DOWN).transpose(1, 2))
            y3 = torch.baddbmm(y3, low, self._value(wired, run, UP).transpose(1, 2))
        return self._scaled(wired, run, y3.reshape(y.shape), "out_scale")

    def _lora(
        self, wired: Wired, runs: Sequence[Run], masks: Sequence[Tensor | None], flat: Tensor, shape: torch.Size
    ) -> Tensor:
        each = flat.shape[0] // self.rows
        chosen = [(run, mask) for run, mask in zip(runs, masks, strict=True) if _roles(run) == PLAIN]
        families = sorted({run.family for run, _ in chosen})
        blocks = []
        for family in families:
            frame = self.pack.families[family].frame
            for role in (DOWN, UP):
                place = frame.place[wired.site.name, role]
                blocks.append(self._blocks[family][place].view(-1, *frame.shapes[place]))
        cuts = [
            _Cut(2 * families.index(run.family), run.begin, run.end, run.start * each, run.stop * each)
            for run, _ in chosen
        ]
        own = [mask for _, mask in chosen]
        # a base that cannot be seen through (4-bit) makes its product for all rows itself, and takes its own gradient
        y = wired.base(flat.view(shape)).reshape(flat.shape[0], -1) if wired.matrix is None else None
        result: Tensor = _GroupedLora.apply(flat, y, wired.matrix, wired.base_bias, cuts, own, *blocks)  # type: ignore[no-untyped-call]
        return result

    def _mask(self, wired: Wired, run: Run, x: Tensor) -> Tensor | None:
        """Dropout of a run's slots [spans, rows, in]. A slot's draws follow from its own seed, its rows and the site."""
        if not run.drops or DOWN not in _roles(run):
            return None
        keep = self._keep(wired)
        if min(keep[run.first : run.last]) == 1.0:
            return None
        if keep not in self._limits:
            self._limits[keep] = chance.limits(keep, self._counts, x.dtype, x.device)
        highest, by = (tensor[run.start : run.stop] for tensor in self._limits[keep])
        columns = self.pack.columns.keys(wired.index, x.shape[-1])
        keys = self._keys_of(x.numel() // x.shape[-1] // self.rows, x.device)[run.start : run.stop]
        return chance.mask(keys, columns, highest, by).view(run.count, -1, x.shape[-1])

    def _keep(self, wired: Wired) -> tuple[float, ...]:
        """For each span how probably a feature of its input is kept."""
        lives = [span.slot.parts.get(wired.site.name) if span.seed is not None else None for span in self.spans]
        return tuple(1.0 - live.plan.dropout if live else 1.0 for live in lives)

    def _keys_of(self, each: int, device: torch.device) -> Tensor:
        if each not in self._keys:
            self._keys[each] = chance.row_keys([span.seed or 0 for span in self.spans], self._counts, each, device)
        return self._keys[each]


@dataclass(frozen=True)
class _Cut:
    """Rows `start`…`stop` of the flattened batch belong to slots `begin`…`end` of the A at `block` and the B behind it."""

    block: int
    begin: int
    end: int
    start: int
    stop: int


class _GroupedLora(torch.autograd.Function):
    """y = x Wᵀ + b, and in the rows of each cut + (dropped x) Aᵀ Bᵀ per slot, for x [tokens, in]; B is scaled already.

    `y` is the frozen map's answer where its matrix cannot be used here, else None. A [slots, rank, in], B [slots, out, rank].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        matrix: Matrix | None,
        bias: Tensor | None,
        cuts: Sequence[_Cut],
        masks: Sequence[Tensor | None],
        *blocks: Tensor,
    ) -> Tensor:
        if y is None:
            assert matrix is not None
            y = linear(x, matrix(), bias)
        else:
            y = y.clone()
        lows = []
        for cut, mask in zip(cuts, masks, strict=True):
            mine, down, up = _of(cut, x, blocks)
            lows.append(torch.bmm(mine if mask is None else mine * mask, down.transpose(1, 2)))
            y[cut.start : cut.stop].view(len(mine), -1, y.shape[1]).baddbmm_(lows[-1], up.transpose(1, 2))
        ctx.matrix, ctx.cuts, ctx.dropped = matrix, cuts, [mask is not None for mask in masks]
        ctx.save_for_backward(x, *blocks, *lows, *(mask for mask in masks if mask is not None))
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, cuts = gradients[0].contiguous(), ctx.cuts
        x, *kept = ctx.saved_tensors
        blocks, kept = kept[: len(ctx.needs_input_grad) - 6], kept[len(ctx.needs_input_grad) - 6 :]
        lows, masks = kept[: len(cuts)], iter(kept[len(cuts) :])
        onward: Tensor | None = None
        if ctx.needs_input_grad[0]:
            onward = torch.zeros_like(x) if ctx.matrix is None else linear(gradient, ctx.matrix().t())
        sums: list[Tensor | None] = [None] * len(blocks)
        for cut, low, dropped in zip(cuts, lows, ctx.dropped, strict=True):
            mine, down, up = _of(cut, x, blocks)
            mask = next(masks) if dropped else None
            above = gradient[cut.start : cut.stop].view(len(mine), -1, gradient.shape[1])
            between = torch.bmm(above, up)
            _put(sums, cut.block, cut, blocks, torch.bmm(between.mT, mine if mask is None else mine * mask))
            _put(sums, cut.block + 1, cut, blocks, torch.bmm(above.mT, low))
            if onward is None:
                continue
            below = onward[cut.start : cut.stop].view(mine.shape)
            if mask is None:
                below.baddbmm_(between, down)
            else:
                below.addcmul_(torch.bmm(between, down), mask)
        return onward, gradient if ctx.needs_input_grad[1] else None, None, None, None, None, *sums


def _of(cut: _Cut, x: Tensor, blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The cut's rows [slots, rows, in], and its slots' A and B."""
    count = cut.end - cut.begin
    mine = x[cut.start : cut.stop].view(count, -1, x.shape[1])
    down, up = blocks[cut.block], blocks[cut.block + 1]
    return (mine, down, up) if count == len(down) else (mine, down[cut.begin : cut.end], up[cut.begin : cut.end])


def _put(sums: list[Tensor | None], at: int, cut: _Cut, blocks: Sequence[Tensor], value: Tensor) -> None:
    """Write a cut's gradient into its block's; slots that take no part have none."""
    if cut.end - cut.begin == len(blocks[at]):
        sums[at] = value
        return
    known = sums[at]
    if known is None:
        sums[at] = known = torch.zeros(blocks[at].shape, dtype=value.dtype, device=value.device)
    known[cut.begin : cut.end] = value


def _roles(run: Run) -> frozenset[str]:
    return run.form.roles if run.form else frozenset()
