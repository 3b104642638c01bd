"""A frozen linear map with the LoRA of every span in one autograd function.

Autograd's own way costs what a LoRA saves: per span it cuts the batch, makes a scaled product and a sum of the output's
size, and joins again, forwards and backwards. Here the base computes all rows at once; each span then adds its low-rank
product in place, and its gradients go straight into the parameters' own fp32 gradients. Every product of a span has
the shape it has when the span is alone, so company changes nothing about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petl_ray.bank.slot import DOWN, UP, LivePart
from petl_ray.models.products import Matrix, linear


@dataclass(frozen=True)
class Cut:
    """Rows `start`…`stop` of the flattened batch belong to `live`; `mask` [rows, in] is its dropout, None for none."""

    live: LivePart
    start: int
    stop: int
    mask: Tensor | None


def lora_linear(x: Tensor, matrix: Matrix, bias: Tensor | None, cuts: Sequence[Cut]) -> Tensor:
    """y = x Wᵀ + b, and in the rows of each cut + scale · (dropped x) Aᵀ Bᵀ (Hu et al. 2021), for x [tokens, in].

    W and `bias` are frozen. Parameters are fp32 and computed with in x's type; gradients are added to theirs in
    fp32. `cuts` must not be empty.
    """
    result: Tensor = _LoraLinear.apply(x, cuts[0].live.values[DOWN], matrix, bias, cuts)  # type: ignore[no-untyped-call]
    return result


class _LoraLinear(torch.autograd.Function):
    """`anchor` is any trained parameter: it makes autograd come by even where x needs no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, matrix: Matrix, bias: Tensor | None, cuts: Sequence[Cut]
    ) -> Tensor:
        y = linear(x, matrix(), bias)
        kept: list[Tensor] = [x]
        for cut in cuts:
            mine = x[cut.start : cut.stop]
            if cut.mask is not None:
                mine = mine * cut.mask
                kept += [mine, cut.mask]
            low = linear(mine, cut.live.working[DOWN])
            y[cut.start : cut.stop].addmm_(low, cut.live.working[UP].t(), alpha=cut.live.plan.scale)
            kept.append(low)
        ctx.save_for_backward(*kept)
        ctx.matrix, ctx.cuts = matrix, cuts
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = gradients
        x, *kept = ctx.saved_tensors
        kept = list(reversed(kept))
        onward = linear(gradient, ctx.matrix().t()) if ctx.needs_input_grad[0] else None
        for cut in ctx.cuts:
            rows = slice(cut.start, cut.stop)
            mask: Tensor | None = None
            if cut.mask is None:
                mine = x[rows]
            else:
                mine, mask = kept.pop(), kept.pop()
            low, above = kept.pop(), gradient[rows]
            between = linear(above, cut.live.working[UP].t().contiguous()).mul_(cut.live.plan.scale)
            _gradient(cut.live.values[DOWN]).add_(between.t() @ mine)
            # the product with the long side last: MKL takes three times as long for its transpose
            _gradient(cut.live.values[UP]).add_((low.t() @ above).t(), alpha=cut.live.plan.scale)
            if onward is None:
                continue
            if mask is None:
                onward[rows].addmm_(between, cut.live.working[DOWN])
            else:
                onward[rows].addcmul_(between @ cut.live.working[DOWN], mask)
        return onward, None, None, None, None


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The fp32 gradient to add to."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
