"""Bottleneck adapters against a reference that says the paper's figure in plain modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from petl_ray.bank import Bank
from petl_ray.methods import BottleneckSpec
from petl_ray.methods.sites import anatomy, output_projections
from petl_ray.models.loading import LoadedBase
from tests.bank.rows import rows, shake


class Reference(nn.Module):
    """A projection followed by an adapter with a residual of its own."""

    def __init__(self, projection: nn.Module, width: int, size: int) -> None:
        super().__init__()
        self.projection = projection
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.projection(x)
        return y + self.up(nn.functional.gelu(self.down(y)))


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_outputs_and_gradients_equal_the_reference(base: str, request: pytest.FixtureRequest) -> None:
    loaded: LoadedBase = request.getfixturevalue(base)
    labels = 2 if loaded.task_type == "classification" else 0
    bank = Bank(loaded, 1)
    bank.fill(0, BottleneckSpec(size=6), labels, seed=1)
    shake(bank.parameters(0).values())
    model = copy.deepcopy(loaded.model)
    for module in model.modules():
        module.__dict__.pop("forward", None)
    ours = bank.parameters(0)
    pairs: list[tuple[Tensor, nn.Parameter]] = []
    for site in output_projections(anatomy(loaded.model)):
        reference = Reference(model.get_submodule(site.name), site.width, 6)
        for layer, role in ((reference.down, "bottleneck_down"), (reference.up, "bottleneck_up")):
            pairs += [
                (ours[f"{site.name}.{role}.weight"], layer.weight),
                (ours[f"{site.name}.{role}.bias"], layer.bias),
            ]
        model.set_submodule(site.name, reference)
    plain = [name for name in ours if "bottleneck" not in name]
    pairs += [(ours[name], model.get_parameter(name).requires_grad_(True)) for name in plain]
    assert len(pairs) == len(ours) and len(plain) >= 4
    for mine, theirs in pairs:
        theirs.data.copy_(mine.data)
    batch = rows(0, 4, 8)
    (logits,) = bank.forward([batch])
    expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)
    logits.pow(2).mean().backward()
    expected.pow(2).mean().backward()
    for mine, theirs in pairs:
        assert mine.grad is not None and theirs.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    bank.detach()


def test_an_untrained_bottleneck_is_nearly_the_identity(bert: LoadedBase) -> None:
    bank = Bank(bert, 1)
    bank.fill(0, BottleneckSpec(size=16), 3, seed=2)
    batch = rows(0, 3, 7)
    plain = bert.model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
    head = bank.state(0)
    with torch.no_grad():
        (logits,) = bank.forward([batch])
    assert (logits - plain @ head["classifier.weight"].T).abs().max() < 1e-3
    bank.detach()
