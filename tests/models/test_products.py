"""Products with frozen matrices: exact to fp32, with a gradient for what flows, whatever rows come along."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from petl_ray.models import products
from petl_ray.models.products import frozen_linear, linear, rows_are_independent

SHAPES = [(384, 384), (384, 1536), (1536, 384), (33, 17)]


@pytest.mark.parametrize(("inner", "outer"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_as_exact_as_fp32_allows(inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 9, inner), torch.randn(outer, inner)
    add = torch.randn(outer) if bias else None
    exact = F.linear(x.double(), weight.double(), None if add is None else add.double())
    assert torch.allclose(linear(x, weight, add).double(), exact, rtol=1e-5, atol=1e-3)


def test_a_transposed_weight_needs_no_copy() -> None:
    x, weight = torch.randn(64, 48), torch.randn(48, 96)
    assert torch.allclose(linear(x, weight.t()), x @ weight, atol=1e-4)


def test_the_gradient_flows_to_the_input_alone() -> None:
    x, weight, bias = torch.randn(8, 5, 32, requires_grad=True), torch.randn(16, 32), torch.randn(16)
    other = x.detach().clone().requires_grad_()
    above = torch.randn(8, 5, 16)
    frozen_linear(x, lambda: weight, bias).backward(above)
    F.linear(other, weight, bias).backward(above)
    assert x.grad is not None and other.grad is not None
    assert torch.allclose(x.grad, other.grad, atol=1e-4)
    assert weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inner", "outer"), SHAPES[:3])
def test_a_row_is_the_same_bits_whatever_rows_come_along(inner: int, outer: int, dtype: torch.dtype) -> None:
    """What lets a slot promise that its neighbours change nothing about it; where it is not so, nobody shares a pass."""
    torch.manual_seed(0)
    if not rows_are_independent([((outer, inner), dtype)]):
        pytest.skip("this processor's libraries multiply a row otherwise in other company")
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((1024, inner), (outer, inner), (outer,)))
    whole = linear(x, weight, bias)
    for start, stop in ((7, 8), (3, 5), (0, 16), (0, 100), (500, 532), (1000, 1024), (24, 1000)):
        assert torch.equal(linear(x[start:stop], weight, bias), whole[start:stop])


def test_a_library_whose_rows_depend_on_their_company_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def moody(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return F.linear(x, weight, bias) * (1.0 + 1e-6 * (x.shape[0] % 2))

    monkeypatch.setattr(products, "linear", moody)
    assert not rows_are_independent([((24, 40), torch.float32)])
