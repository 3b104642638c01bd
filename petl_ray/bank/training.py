"""The training layout: rows lie in segments, one slot each; at every site each segment meets its own slot's parameters.

The base computes all rows at once. Plain LoRA is added by `fused`; whatever else a slot may hold (scales, bottlenecks,
heads, norms) is computed span by span in `adapted`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from petl_ray.bank.fused import Cut, lora_linear
from petl_ray.bank.prefix import States
from petl_ray.bank.slot import DOWN, UP, LivePart, Slot
from petl_ray.bank.wiring import Wired

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Segment:
    """Rows of one slot: `input_ids` and `attention_mask` [rows, length]; `extra` holds what else the model wants
    (such as `token_type_ids`), shaped alike; `states` what the slot's frozen prefix makes of the rows, where that is
    known (see `Bank.frozen_depth`)."""

    slot: int
    input_ids: Tensor
    attention_mask: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    states: States | None = None


@dataclass(frozen=True)
class Span:
    """Where a segment's rows lie in the joint batch. `seed` is this forward's dropout seed, None if none is wanted."""

    slot: Slot
    start: int
    stop: int
    length: int
    seed: int | None


class TrainingLayout:
    """One joint forward: spans that cover all rows in order, padded to `length` tokens."""

    def __init__(self, spans: Sequence[Span], length: int) -> None:
        self.spans, self.length, self.rows = spans, length, spans[-1].stop

    def linear(self, wired: Wired, x: Tensor) -> Tensor:
        """W x for all rows at once, then each span's own addition."""
        lives = self._lives(wired)
        if not any(lives):
            return wired.base(x)
        x = _gathered(x)
        if any(live and "in_scale" in live.values for live in lives):
            x = join([_scaled(live, part) for live, part in zip(lives, self._cut(x), strict=True)])
        if all(live is not None and live.plan.op == "replace" for live in lives):
            return join([_replaced(live, part) for live, part in zip(lives, self._cut(x), strict=True) if live])
        # how a span is computed depends on its own part alone, so that no neighbour changes its bits
        fused = [live if live and live.plain_lora and wired.matrix is not None else None for live in lives]
        y = self._fused(wired, fused, x) if any(fused) else wired.base(x)
        rest = [None if done else live for live, done in zip(lives, fused, strict=True)]
        if not any(rest):
            return y
        xs, ys = self._cut(x), self._cut(y)
        masks = [self._mask(span, live, wired, part) for span, live, part in zip(self.spans, rest, xs, strict=True)]
        return join([adapted(*each) for each in zip(rest, xs, ys, masks, strict=True)])

    def norm(self, wired: Wired, x: Tensor) -> Tensor:
        """Each span through its own norm where it has one, else through the base's."""
        x = _gathered(x)
        lives = self._lives(wired)
        if not any(lives):
            return wired.base(x)
        parts = []
        for live, part in zip(lives, self._cut(x), strict=True):
            own = live.values if live else {}
            parts.append(wired.form.apply(part, own["weight"], own.get("bias")) if own else wired.base(part))
        return join(parts)

    def _fused(self, wired: Wired, lives: list[LivePart | None], x: Tensor) -> Tensor:
        matrix = wired.matrix
        assert matrix is not None
        flat = x.reshape(-1, x.shape[-1])
        each = flat.shape[0] // self.rows
        cuts = []
        for span, live in zip(self.spans, lives, strict=True):
            if live is not None:
                start, stop = span.start * each, span.stop * each
                mask = self._mask(span, live, wired, x[span.start : span.stop] if x.dim() == 3 else flat[start:stop])
                cuts.append(Cut(live, start, stop, None if mask is None else mask.reshape(stop - start, -1)))
        return lora_linear(flat, matrix, wired.base_bias, cuts).view(*x.shape[:-1], -1)

    def _lives(self, wired: Wired) -> list[LivePart | None]:
        return [span.slot.parts.get(wired.site.name) for span in self.spans]

    def _cut(self, x: Tensor) -> list[Tensor]:
        """x by spans. Models may hand over [rows, …] or rows and tokens in one dimension.

        One split, not slices: the gradient of a slice is as large as x, that of a split is one concatenation.
        """
        if len(self.spans) == 1:
            return [x]
        each = x.shape[0] // self.rows
        return list(torch.split(x, [(span.stop - span.start) * each for span in self.spans]))

    def _mask(self, span: Span, live: LivePart | None, wired: Wired, x: Tensor) -> Tensor | None:
        """Dropout of one span at one site: a function of the span's seed and the site, drawn over the segment's own
        length, so that neither neighbours nor their padding nor a recomputation change it."""
        if live is None or span.seed is None or live.plan.dropout == 0:
            return None
        generator = torch.Generator(device=x.device).manual_seed((span.seed + 0x9E3779B97F4A7C15 * wired.index) % 2**63)
        shape = list(x.shape)
        padded = x.dim() == 3 and x.shape[1] == self.length
        if padded:
            shape[1] = span.length
        keep = 1.0 - live.plan.dropout
        mask = torch.rand(shape, generator=generator, device=x.device).lt_(keep).div_(keep).to(x.dtype)
        return F.pad(mask, (0, 0, 0, self.length - span.length)) if padded else mask


def adapted(live: LivePart | None, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """One span's output at one linear site, from its input x [rows, …, in] and the base's output y [rows, …, out].

    Parameters are fp32 and computed with in the base's type; their gradients arrive in fp32.
    """
    if live is None:
        return y
    values, kind = live.values, x.dtype
    if live.plan.op == "replace":
        return _replaced(live, x).to(y.dtype)
    if live.plan.op == "bottleneck":
        down = F.linear(y, values["bottleneck_down.weight"].to(kind), values["bottleneck_down.bias"].to(kind))
        up = ACTIVATIONS[live.plan.activation](down)
        return y + F.linear(up, values["bottleneck_up.weight"].to(kind), values["bottleneck_up.bias"].to(kind))
    if DOWN in values:
        low = F.linear(x if mask is None else x * mask, values[DOWN].to(kind))
        y = y + F.linear(low, values[UP].to(kind)) * live.plan.scale
    return y * values["out_scale"].to(kind) if "out_scale" in values else y


def _gathered(x: Tensor) -> Tensor:
    """x itself, as a step of its own in autograd: what flows back to it from inside a site is added up first.

    Sums of three depend on their order, and spans that were cut apart add up before they meet the rest; without this an
    occupant alone would add in another order than one beside neighbours.
    """
    return x.view_as(x)


def _scaled(live: LivePart | None, x: Tensor) -> Tensor:
    return x * live.values["in_scale"].to(x.dtype) if live and "in_scale" in live.values else x


def _replaced(live: LivePart, x: Tensor) -> Tensor:
    """A slot's own linear map, in fp32: heads are small and their logits feed the loss."""
    return F.linear(x.float(), live.values["weight"], live.values.get("bias"))


def join(parts: list[Tensor]) -> Tensor:
    """Spans back into one batch; label counts may differ, so the last dimension is padded with zeros."""
    if len(parts) == 1:
        return parts[0]
    widest = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, widest - part.shape[-1])) if part.shape[-1] < widest else part for part in parts])
