"""AdamW over one slot's fp32 parameters (Loshchilov & Hutter 2019), its moments as plain tensors, gradient clipping."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from petl_ray.training.spec import TrainSpec


class SlotOptimizer:
    """One slot's optimizer. Matrices decay, vectors (biases, layer norms) do not; heads may have their own rate."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], heads: Collection[str], spec: TrainSpec) -> None:
        self._parameters = dict(sorted(parameters.items()))
        self._clip = spec.gradient_clip
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self._parameters.items():
            rate = spec.head_learning_rate if name in heads and spec.head_learning_rate else spec.learning_rate
            decay = spec.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        self._rates = [rate for rate, _ in groups]
        self._adamw = torch.optim.AdamW(
            [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
            fused=True,
        )

    @property
    def gradients(self) -> list[torch.Tensor]:
        """Every parameter's gradient in the order of names; zeros where nothing has flowed."""
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def forget(self) -> None:
        """Drop all gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def shrink(self, scale: float) -> None:
        """Divide all gradients by the scale of the loss they came from."""
        if scale != 1.0:
            for gradient in self.gradients:
                gradient.div_(scale)

    def norm(self) -> torch.Tensor:
        """The Euclidean norm of all gradients together, a scalar tensor."""
        return nn.utils.get_total_norm(self.gradients)

    def apply(self, factor: float, norm: torch.Tensor) -> None:
        """One AdamW step at `factor` times the rates, gradients scaled down to the clipping norm first."""
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(list(self._parameters.values()), self._clip, norm)
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._adamw.step()

    def moments(self) -> dict[str, torch.Tensor]:
        """`first/NAME` and `second/NAME`: what AdamW remembers; empty before the first step."""
        kept = {}
        for name, parameter in self._parameters.items():
            if state := self._adamw.state.get(parameter):
                kept[f"first/{name}"], kept[f"second/{name}"] = state["exp_avg"], state["exp_avg_sq"]
        return kept

    def restore(self, moments: Mapping[str, torch.Tensor], steps: int) -> None:
        """Continue after `steps` steps from what `moments` gave."""
        for name, parameter in self._parameters.items():
            if f"first/{name}" in moments:
                self._adamw.state[parameter] = {
                    "step": torch.tensor(float(steps), device=parameter.device),
                    "exp_avg": moments[f"first/{name}"].to(parameter.device).clone(),
                    "exp_avg_sq": moments[f"second/{name}"].to(parameter.device).clone(),
                }
