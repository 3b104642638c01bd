"""Products with matrices that never change, by the fastest exact way this machine has.

In fp32 torch multiplies through MKL, which on CPUs of other makers than its own keeps to 256-bit instructions; oneDNN,
which torch carries too, uses what the CPU has. Measured on an EPYC with AVX-512, one thread, 256 x 384 by 384 x 384:
97 GFLOP/s through MKL, 228 through oneDNN, without any copy of the weights. Both are sums of fp32 products in
fp32. The choice follows from the instruction set and the type alone, never from a measurement, so that equal machines
compute equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Matrix = Callable[[], Tensor]  # gives a frozen matrix [out, in]; what is packed is unpacked for each product


def frozen_matrix(module: nn.Module) -> Matrix | None:
    """The matrix of a plain linear map in floating point, or of a 4-bit one on a CPU; None for anything that computes
    otherwise.

    bitsandbytes has no kernel of its own for many rows on a CPU: it unpacks the matrix and multiplies through MKL. The
    same numbers multiplied here, measured on an EPYC with AVX-512, one thread, 256 and 1,024 rows, the unpacking
    included: in fp32 1.7 to 2.2 times as fast for 384 x 384 to 5632 x 2048, in bf16 equally fast.
    """
    if type(module) is nn.Linear:
        return partial(module.get_parameter, "weight")
    state = getattr(module.weight, "quant_state", None) if isinstance(module, nn.Linear) else None
    if state is None or type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu":
        return None
    from bitsandbytes.functional import dequantize_4bit

    weight, kind = module.weight, module.compute_dtype or state.dtype
    return lambda: dequantize_4bit(weight.data.view(-1, 1), state).to(kind)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for x [..., in], W [out, in] of any strides, b [out]. Not seen by autograd.

    On a CPU a row of x gives the same bits whatever rows stand beside it: below a few rows the libraries multiply in
    another order, so such a product is made with rows of zeros added.
    """
    rows = x.numel() // x.shape[-1]
    if x.device.type == "cpu" and rows < _FEWEST_ROWS:
        padded = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, _FEWEST_ROWS - rows))
        return linear(padded, weight, bias)[:rows].reshape(*x.shape[:-1], -1)
    if x.device.type == "cpu" and x.dtype == torch.float32 == weight.dtype and (product := _onednn()) is not None:
        return product(x, weight, bias)
    return F.linear(x, weight, bias)


def frozen_linear(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
    """The same, with a gradient for x and none for matrix and `bias`; nothing of the matrix is kept for the way back."""
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Frozen.apply(x, matrix, bias)  # type: ignore[no-untyped-call]
        return result
    return linear(x, matrix(), bias)


@torch.no_grad()
def rows_are_independent(matrices: Iterable[tuple[tuple[int, ...], torch.dtype]]) -> bool:
    """Whether this CPU's libraries give a row of a product with such matrices, forwards and backwards, the same bits in
    any company.

    Tried out once per shape, type and number of threads, with as many rows as small and large passes have. The answer
    follows from the processor and the libraries, never from a measurement of time.
    """
    found = sorted(set(matrices), key=str)
    return all(_row_is_independent(shape, dtype, torch.get_num_threads()) for shape, dtype in found)


@cache
def _row_is_independent(shape: tuple[int, ...], dtype: torch.dtype, threads: int) -> bool:
    outer, inner = shape
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(outer, inner, generator=chance).to(dtype)
    rows = 1100 if outer * inner < 1 << 22 else 128  # vocabularies are wide, and a second is enough
    for matrix, width in ((weight, inner), (weight.t(), outer)):
        x = torch.randn(rows, width, generator=chance).to(dtype)
        whole = linear(x, matrix)
        for start, stop in _COMPANIES:
            if stop <= rows and not torch.equal(linear(x[start:stop], matrix), whole[start:stop]):
                return False
    return True


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
        ctx.matrix = matrix
        return linear(x, matrix(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return linear(gradients[0], ctx.matrix().t()), None, None


@cache
def _onednn() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """oneDNN's product where the CPU has AVX-512, or None; what torch lends under an inner name is tried out first."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        inner = torch.ops.mkldnn._linear_pointwise.default
        x, weight, bias = (torch.linspace(-1, 1, size).reshape(shape) for size, shape in _TRIAL)
        right = torch.allclose(inner(x, weight, bias, "none", [], ""), F.linear(x, weight, bias), atol=1e-4)
    except (AttributeError, RuntimeError):
        return None

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = inner(x, weight, bias, "none", [], "")
        return result

    return product if right else None


_FEWEST_ROWS = 16
_COMPANIES = ((0, 1), (5, 8), (16, 32), (3, 27), (40, 104), (100, 228), (7, 391), (64, 576), (76, 1100))
_TRIAL = ((32 * 48, (32, 48)), (16 * 48, (16, 48)), (16, (16,)))
