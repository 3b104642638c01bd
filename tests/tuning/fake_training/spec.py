"""The question of the miniature training room."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from petl_ray.spec import NOT_IDENTITY, OMIT_DEFAULT, Spec


class Lora(Spec):
    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)


class Bottleneck(Spec):
    kind: Literal["bottleneck"] = "bottleneck"
    size: int = Field(default=16, ge=1)


class MiniPhase(Spec):
    start: float
    learning_rate: float | None = Field(default=None, gt=0)


class MiniSpec(Spec):
    base: str = "mini"
    method: Lora | Bottleneck = Field(default=Lora(), discriminator="kind")
    learning_rate: float = Field(default=1e-3, gt=0)
    seed: int = 0
    metric: Literal["accuracy", "loss"] = "accuracy"
    pause_s: float = 0.0
    log: Annotated[str, NOT_IDENTITY] = ""
    spoils: Annotated[str, NOT_IDENTITY] = ""
    phases: Annotated[tuple[MiniPhase, ...], OMIT_DEFAULT] = ()
    too_long: Annotated[bool, OMIT_DEFAULT] = False

    def begun(self, step: int, steps: int) -> MiniSpec:
        """Without the phases that begin at `step` or later."""
        return self.model_copy(update={"phases": tuple(one for one in self.phases if round(one.start * steps) < step)})

    def rate(self) -> float:
        """The learning rate at the end."""
        return [self.learning_rate, *(one.learning_rate for one in self.phases if one.learning_rate)][-1]

    @property
    def mode(self) -> str:
        return "min" if self.metric == "loss" else "max"
