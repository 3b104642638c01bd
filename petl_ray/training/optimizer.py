"""AdamW over slots' fp32 parameters (Loshchilov & Hutter 2019), each slot with rates, decay, clipping and moments of its own.

Slots step together. On a GPU every operation is one launch over the tensors of all slots, with one number a tensor; on a
CPU, where memory is what counts, each group of a slot takes torch's fused step, which goes over its tensors once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from petl_ray.bank import Flat
from petl_ray.training.spec import TrainSpec


@dataclass
class _Part:
    """What is treated alike within a slot: views of its flat tensors, a rate and a decay."""

    values: torch.Tensor
    gradients: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    rate: float = 0.0
    decay: float = 0.0


class SlotOptimizer:
    """One slot's optimizer. Matrices decay, vectors (biases, layer norms) do not; heads and LoRA's B may have their own
    rate.

    It works on the slot's flat tensors: one part a group, of which there are five at most.
    """

    def __init__(self, flat: Flat, spec: TrainSpec) -> None:
        self._flat = flat
        self.clip, self.beta1, self.beta2, self.epsilon = spec.gradient_clip, spec.beta1, spec.beta2, spec.epsilon
        self._first, self._second = torch.zeros_like(flat.values), torch.zeros_like(flat.values)
        self.steps = 0
        self.parts = [
            _Part(flat.values[a:b], flat.gradients[a:b], self._first[a:b], self._second[a:b])
            for a, b in flat.groups.values()
        ]
        self.heed(spec)

    def heed(self, spec: TrainSpec) -> None:
        """From the next step on take the rates and the decay of `spec`; its phases mean nothing here."""
        for group, part in zip(self._flat.groups, self.parts, strict=True):
            rate = spec.head_learning_rate if group.head and spec.head_learning_rate else spec.learning_rate
            part.rate = rate * spec.lora_plus if group.up else rate
            part.decay = 0.0 if group.vector else spec.weight_decay

    @property
    def gradients(self) -> torch.Tensor:
        """Every parameter's gradient behind each other, fp32."""
        return self._flat.gradients

    def forget(self) -> None:
        """Set all gradients to zero."""
        self._flat.gradients.zero_()

    def shrink(self, scale: float) -> None:
        """Divide all gradients by the scale of the loss they came from."""
        if scale != 1.0:
            self._flat.gradients.div_(scale)

    def moments(self) -> dict[str, torch.Tensor]:
        """`first/NAME` and `second/NAME`: what AdamW remembers, flat; empty before the first step."""
        if not self.steps:
            return {}
        both = (("first", self._first), ("second", self._second))
        return {
            f"{role}/{name}": flat[a:b].clone() for role, flat in both for name, (a, b) in self._flat.ranges.items()
        }

    def restore(self, moments: Mapping[str, torch.Tensor], steps: int) -> None:
        """Continue after `steps` steps from what `moments` gave."""
        if not moments.keys() & {f"first/{name}" for name in self._flat.ranges}:
            return
        self.steps = steps
        for name, (start, stop) in self._flat.ranges.items():
            self._first[start:stop].copy_(moments[f"first/{name}"].reshape(-1))
            self._second[start:stop].copy_(moments[f"second/{name}"].reshape(-1))


@dataclass(frozen=True)
class Stride:
    """A step of one slot: `factor` times its rates, its gradients scaled down to the clipping norm if `norm` is larger."""

    optimizer: SlotOptimizer
    factor: float
    norm: float


def norms(optimizers: Sequence[SlotOptimizer]) -> list[torch.Tensor]:
    """The Euclidean norm of each slot's gradients, scalar tensors."""
    gradients = [one.gradients for one in optimizers]
    return list(torch._foreach_norm(gradients)) if gradients else []


@torch.no_grad()
def stride(strides: Sequence[Stride]) -> None:
    """One AdamW step of each slot of a bank; no slot's numbers depend on another's."""
    for each in strides:
        if (clip := each.optimizer.clip) is not None and each.norm > clip:
            each.optimizer.gradients.mul_(clip / each.norm)
        each.optimizer.steps += 1
    if strides and strides[0].optimizer.gradients.device.type != "cpu":
        foreach(strides)
    else:
        for each in strides:
            fused(each)


def fused(each: Stride) -> None:
    """One slot's step, which its `steps` count already, a part at a time."""
    own = each.optimizer
    for part in own.parts:
        adamw(
            [part.values],
            [part.gradients],
            [part.first],
            [part.second],
            [],
            [torch.tensor(own.steps - 1.0)],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=own.beta1,
            beta2=own.beta2,
            eps=own.epsilon,
            lr=part.rate * each.factor,
            weight_decay=part.decay,
        )


def foreach(strides: Sequence[Stride]) -> None:
    """The same for many slots, as ten operations over all their parts."""
    pairs = [(each, part) for each in strides for part in each.optimizer.parts]
    owners, parts = [each.optimizer for each, _ in pairs], [part for _, part in pairs]
    rates = [part.rate * each.factor for each, part in pairs]
    values, gradients = [part.values for part in parts], [part.gradients for part in parts]
    first, second = [part.first for part in parts], [part.second for part in parts]
    torch._foreach_mul_(values, [1 - rate * part.decay for rate, part in zip(rates, parts, strict=True)])
    torch._foreach_mul_(first, [own.beta1 for own in owners])
    torch._foreach_add_(first, torch._foreach_mul(gradients, [1 - own.beta1 for own in owners]))
    torch._foreach_mul_(second, [own.beta2 for own in owners])
    torch._foreach_addcmul_(second, gradients, gradients, [1 - own.beta2 for own in owners])
    below = torch._foreach_sqrt(second)
    torch._foreach_div_(below, [(1 - own.beta2**own.steps) ** 0.5 for own in owners])
    torch._foreach_add_(below, [own.epsilon for own in owners])
    lengths = [-rate / (1 - own.beta1**own.steps) for rate, own in zip(rates, owners, strict=True)]
    torch._foreach_addcdiv_(values, first, below, lengths)
