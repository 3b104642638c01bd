"""Who may share a pass: on a CPU whose products allow it rows of one length, on a GPU anybody."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from petl_ray.bank.memory import PASS_TOKENS
from petl_ray.models import LoadedBase, load_base, products
from petl_ray.models.products import frozen_matrix, linear
from petl_ray.training import sharing
from petl_ray.training.sharing import Sharing
from tests.training.questions import locked
from tests.training.test_rounds import GPU


def company_changes_no_bit(loaded: LoadedBase) -> bool:
    """Whether rows of a product with each of the base's matrices, there and back, are the same among others and alone."""
    chance = torch.Generator().manual_seed(1)
    for module in loaded.model.modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        matrix: Any = frozen_matrix(module)
        for weight in (matrix(), matrix().t()):
            x = torch.randn(1100, weight.shape[1], generator=chance).to(loaded.compute_dtype)
            whole = linear(x, weight)
            if not all(torch.equal(linear(x[a:b], weight), whole[a:b]) for a, b in products._COMPANIES):
                return False
    return True


@pytest.mark.parametrize(("precision", "quantization"), [("fp32", "none"), ("bf16", "none"), ("fp32", "nf4")])
def test_a_cpu_shares_passes_exactly_where_no_bit_depends_on_company(
    tiny_bert: Path, precision: str, quantization: str
) -> None:
    """Where it is so, tests of isolation may ask for shared passes; one that is never shared would pass them all."""
    loaded = load_base(locked(tiny_bert, precision, quantization), "classification", "cpu")
    bound = PASS_TOKENS["fp32" if precision == "fp32" else "other"]
    assert Sharing.of(loaded) == Sharing(shared=company_changes_no_bit(loaded), alike=True, tokens=bound)


def test_a_base_that_multiplies_by_itself_shares_no_pass_on_a_cpu(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_base(locked(tiny_bert), "classification", "cpu")
    monkeypatch.setattr(sharing, "frozen_matrix", lambda _: None)
    assert not Sharing.of(loaded).shared


def test_on_a_gpu_anybody_shares_passes_of_any_size() -> None:
    assert Sharing.of(cast("LoadedBase", SimpleNamespace(device=torch.device("cuda")))) == GPU
