"""Slots that step together step as torch's AdamW does for each of them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from petl_ray.bank import Bank
from petl_ray.models import load_base
from petl_ray.training import optimizer
from petl_ray.training.optimizer import SlotOptimizer, Stride, norms, stride
from petl_ray.training.schedule import rate_factor
from tests.training.questions import recipe

CHANGES: list[dict[str, Any]] = [
    {"learning_rate": 1e-2, "weight_decay": 0.1, "gradient_clip": 0.5},
    {"learning_rate": 3e-3, "lora_plus": 4.0, "beta1": 0.8, "gradient_clip": None},
    {"learning_rate": 1e-3, "head_learning_rate": 5e-3, "epsilon": 1e-4, "method": {"kind": "bottleneck", "size": 3}},
]
STEPS = 6
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def gradients_of(slot: int, step: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(100 * slot + step))


def together(
    step: Callable[[Sequence[Stride]], None], base: Any, slots: Sequence[int], device: str
) -> list[torch.Tensor]:
    """The values of each slot after some steps taken side by side."""
    loaded = load_base(base, "classification", device)
    bank = Bank(loaded, slots=len(CHANGES))
    specs = [recipe(base, **change) for change in CHANGES]
    for slot, spec in enumerate(specs):
        bank.fill(slot, spec.method, 3, seed=slot)
    optimizers = {slot: SlotOptimizer(bank.flat(slot), specs[slot]) for slot in slots}
    for turn in range(STEPS):
        for slot, one in optimizers.items():
            one.gradients.copy_(gradients_of(slot, turn, one.gradients.numel()))
        sizes = [float(norm) for norm in norms(list(optimizers.values()))]
        factor = rate_factor(turn, STEPS, 0.1, "linear")
        step([Stride(one, factor, size) for one, size in zip(optimizers.values(), sizes, strict=True)])
    values = [bank.flat(slot).values.clone() for slot in slots]
    bank.detach()
    return values


def by_torch(base: Any, slot: int, device: str) -> torch.Tensor:
    """The same by torch.optim.AdamW over the slot's own parameters."""
    bank = Bank(load_base(base, "classification", device), slots=1)
    spec = recipe(base, **CHANGES[slot])
    bank.fill(0, spec.method, 3, seed=slot)
    flat = bank.flat(0)
    groups: list[dict[str, Any]] = []
    for group, (start, stop) in flat.groups.items():
        member = torch.nn.Parameter(flat.values[start:stop])
        rate = spec.head_learning_rate if group.head and spec.head_learning_rate else spec.learning_rate
        rate *= spec.lora_plus if group.up else 1.0
        decay = 0.0 if group.vector else spec.weight_decay
        groups.append({"params": [member], "lr": rate, "rate": rate, "weight_decay": decay})
    adamw = torch.optim.AdamW(groups, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)
    members = [one["params"][0] for one in groups]
    for turn in range(STEPS):
        gradients = gradients_of(slot, turn, flat.values.numel()).to(device)
        if spec.gradient_clip:
            gradients *= min(1.0, spec.gradient_clip / float(gradients.norm()))
        for member, (start, stop) in zip(members, flat.groups.values(), strict=True):
            member.grad = gradients[start:stop]
        for one in adamw.param_groups:
            one["lr"] = one["rate"] * rate_factor(turn, STEPS, 0.1, "linear")
        adamw.step()
    values = flat.values.clone()
    bank.detach()
    return values


def in_lists(strides: Sequence[Stride]) -> None:
    """`stride` as it goes on a GPU."""
    original = optimizer.fused
    held: list[Stride] = []
    optimizer.fused = held.append  # type: ignore[assignment]
    try:
        stride(strides)
    finally:
        optimizer.fused = original
    with torch.no_grad():
        optimizer.foreach(held)


WAYS = pytest.mark.parametrize(
    ("step", "device"),
    [(stride, "cpu"), (in_lists, "cpu"), pytest.param(stride, "cuda", marks=GPU)],
    ids=["each", "lists", "on a GPU"],
)


@WAYS
def test_every_slot_steps_as_torch_would_step_it_alone(base: Any, step: Any, device: str) -> None:
    for slot, values in enumerate(together(step, base, range(len(CHANGES)), device)):
        torch.testing.assert_close(values, by_torch(base, slot, device), rtol=1e-5, atol=1e-7)


@WAYS
def test_no_slot_has_other_bits_because_another_steps_beside_it(base: Any, step: Any, device: str) -> None:
    whole = together(step, base, range(len(CHANGES)), device)
    for slot in range(len(CHANGES)):
        assert torch.equal(together(step, base, [slot], device)[0], whole[slot])
