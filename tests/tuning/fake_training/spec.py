"""The question of the miniature training room."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from petl_ray.spec import Spec


class Lora(Spec):
    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)


class Bottleneck(Spec):
    kind: Literal["bottleneck"] = "bottleneck"
    size: int = Field(default=16, ge=1)


class MiniSpec(Spec):
    base: str = "mini"
    method: Lora | Bottleneck = Field(default=Lora(), discriminator="kind")
    learning_rate: float = Field(default=1e-3, gt=0)
    seed: int = 0
    metric: Literal["accuracy", "loss"] = "accuracy"
    pause_s: float = 0.0

    @property
    def mode(self) -> str:
        return "min" if self.metric == "loss" else "max"
