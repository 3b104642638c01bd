"""AdamW over one slot's fp32 parameters (Loshchilov & Hutter 2019), its moments as plain tensors, gradient clipping."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from petl_ray.bank import Flat
from petl_ray.training.spec import TrainSpec


class SlotOptimizer:
    """One slot's optimizer. Matrices decay, vectors (biases, layer norms) do not; heads and LoRA's B may have their own
    rate.

    It works on the slot's flat tensors: one parameter a group, of which there are five at most.
    """

    def __init__(self, flat: Flat, spec: TrainSpec) -> None:
        self._flat, self._clip = flat, spec.gradient_clip
        self._members: dict[tuple[int, int], nn.Parameter] = {}
        self._rates: list[float] = []
        groups = []
        for group, (start, stop) in flat.groups.items():
            member = nn.Parameter(flat.values[start:stop])
            member.grad = flat.gradients[start:stop]
            self._members[start, stop] = member
            rate = spec.head_learning_rate if group.head and spec.head_learning_rate else spec.learning_rate
            self._rates.append(rate * spec.lora_plus if group.up else rate)
            groups.append({"params": [member], "weight_decay": 0.0 if group.vector else spec.weight_decay})
        self._adamw = torch.optim.AdamW(groups, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True)

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

    def norm(self) -> torch.Tensor:
        """The Euclidean norm of all gradients together, a scalar tensor."""
        norm: torch.Tensor = torch.linalg.vector_norm(self._flat.gradients)
        return norm

    def apply(self, factor: float, norm: float) -> None:
        """One AdamW step at `factor` times the rates, gradients scaled down to the clipping norm first."""
        if self._clip is not None and norm > self._clip:
            self._flat.gradients.mul_(self._clip / norm)
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._adamw.step()

    def moments(self) -> dict[str, torch.Tensor]:
        """`first/NAME` and `second/NAME`: what AdamW remembers, flat; empty before the first step."""
        kept = {}
        for name, (start, stop) in self._flat.ranges.items():
            group, member = self._group_of(start)
            if state := self._adamw.state.get(member):
                kept[f"first/{name}"] = state["exp_avg"][start - group : stop - group].clone()
                kept[f"second/{name}"] = state["exp_avg_sq"][start - group : stop - group].clone()
        return kept

    def restore(self, moments: Mapping[str, torch.Tensor], steps: int) -> None:
        """Continue after `steps` steps from what `moments` gave."""
        if not moments.keys() & {f"first/{name}" for name in self._flat.ranges}:
            return
        for member in self._members.values():
            self._adamw.state[member] = {
                "step": torch.tensor(float(steps), device=member.device),
                "exp_avg": torch.zeros_like(member),
                "exp_avg_sq": torch.zeros_like(member),
            }
        for name, (start, stop) in self._flat.ranges.items():
            group, member = self._group_of(start)
            for role, key in (("first", "exp_avg"), ("second", "exp_avg_sq")):
                self._adamw.state[member][key][start - group : stop - group].copy_(
                    moments[f"{role}/{name}"].reshape(-1)
                )

    def _group_of(self, at: int) -> tuple[int, nn.Parameter]:
        """Where the group begins that holds position `at`, and its parameter."""
        return next((start, member) for (start, stop), member in self._members.items() if start <= at < stop)
