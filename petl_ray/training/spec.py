"""What may be asked of training: the base, the method, and how the steps are taken. Imports no torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from petl_ray.methods.spec import LoraSpec, MethodSpec
from petl_ray.models.spec import LockedBase
from petl_ray.spec import NOT_IDENTITY, OMIT_DEFAULT, Spec
from petl_ray.training.schedule import step_at

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Phase(Spec):
    """What changes in the middle of a training: from `start`, a share of the horizon, on the values given here hold.

    None: as before. The schedule goes on over the whole horizon and multiplies the rates of the phase.
    """

    start: float = Field(gt=0.0, lt=1.0)
    learning_rate: float | None = Field(default=None, gt=0, le=1.0)
    head_learning_rate: float | None = Field(default=None, gt=0, le=1.0)
    lora_plus: float | None = Field(default=None, ge=1, le=256)
    weight_decay: float | None = Field(default=None, ge=0, le=1.0)

    @property
    def changes(self) -> dict[str, float]:
        """The values that it gives, by field."""
        given = self.model_dump(exclude={"start"})
        return {name: value for name, value in given.items() if value is not None}


class TrainSpec(Spec):
    """One training question. The defaults are a sound LoRA recipe for short texts on a small encoder.

    One optimizer step sees `batch_size * gradient_accumulation` rows, whatever `tokens_per_step` says: that only
    bounds the padded tokens of one forward pass. `epochs` may be a fraction; the schedule spans the full horizon.
    """

    base: LockedBase
    task_type: Literal["classification", "causal_lm"] = "classification"
    method: MethodSpec = LoraSpec()
    learning_rate: float = Field(default=1e-3, gt=0, le=1.0)
    head_learning_rate: float | None = Field(default=None, gt=0, le=1.0, description="None: the learning rate")
    lora_plus: float = Field(
        default=1.0, ge=1, le=256, description="learning rate of LoRA's B over that of its A (LoRA+, Hayou et al. 2024)"
    )
    epochs: float = Field(default=3.0, gt=0, le=1000)
    batch_size: int = Field(default=16, ge=1, le=65536)
    gradient_accumulation: int = Field(default=1, ge=1, le=4096)
    tokens_per_step: int | None = Field(default=None, ge=1, description="bound on padded tokens of one forward pass")
    max_length: int = Field(default=128, ge=2, le=1 << 20, description="tokens of one row; longer rows are cut")
    template: str = Field(default="{prompt}", description="how a prompt is written for the model (causal_lm only)")
    weight_decay: float = Field(default=0.0, ge=0, le=1.0)
    warmup_share: Share = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    gradient_clip: float | None = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    metric: Literal["accuracy", "macro_f1", "matthews", "loss", "perplexity"] = "accuracy"
    validate_every: float = Field(default=0.25, gt=0, le=1.0, description="share of the horizon between validations")
    keep: Literal["best", "last"] = "best"
    phases: Annotated[tuple[Phase, ...], OMIT_DEFAULT] = Field(
        default=(), description="rates and decay that change on the way, by rising starts"
    )
    checkpoint_every_s: Annotated[float, NOT_IDENTITY] = Field(default=60.0, gt=0)

    @property
    def mode(self) -> Literal["max", "min"]:
        """Which way `metric` is better."""
        return "min" if self.metric in ("loss", "perplexity") else "max"

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimizer step sees, over all micro-batches and workers."""
        return self.batch_size * self.gradient_accumulation

    def begun(self, step: int, steps: int) -> Self:
        """This question without the phases that begin at 0-based `step` of `steps` or later: what the steps before it
        have come from, whatever is to come."""
        if not self.phases:
            return self
        begun = tuple(phase for phase in self.phases if step_at(phase.start, steps) < step)
        return self.model_copy(update={"phases": begun})

    def in_force(self, step: int, steps: int) -> Self:
        """This question with the values that hold at 0-based `step` of `steps` in the place of its own, without phases."""
        values: dict[str, float] = {}
        for phase in self.begun(step + 1, steps).phases:
            values |= phase.changes
        return self.model_copy(update={**values, "phases": ()})

    @model_validator(mode="after")
    def _rising(self) -> Self:
        starts = [phase.start for phase in self.phases]
        if any(low >= high for low, high in pairwise(starts)):
            raise ValueError(f"phases: got the starts {starts}; each phase follows the one before. Let them rise")
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.tokens_per_step is not None and self.tokens_per_step < self.max_length:
            raise ValueError(
                f"tokens_per_step: got {self.tokens_per_step} with max_length {self.max_length}; one full row would "
                f"not fit into a forward pass. Choose {self.max_length} or more, or shorten max_length"
            )
        of_labels = self.metric in ("macro_f1", "matthews")
        if (self.task_type == "causal_lm" and of_labels) or (
            self.task_type == "classification" and self.metric == "perplexity"
        ):
            raise ValueError(
                f"metric: got {self.metric} with task_type {self.task_type}; it is not defined there. "
                f"Choose accuracy or loss{'' if of_labels else ', macro_f1 or matthews'}"
            )
        if "{prompt}" not in self.template:
            raise ValueError(
                f"template: got {self.template!r}; without {{prompt}} every row would look the same. Add {{prompt}}"
            )
        lora_plus = max([self.lora_plus, *(phase.lora_plus or 1.0 for phase in self.phases)])
        if self.method.kind != "lora" and lora_plus != 1.0:
            raise ValueError(
                f"lora_plus: got {lora_plus:g} with method {self.method.kind}; only a LoRA has an A and a B. "
                "Leave it out or choose kind lora"
            )
        if self.method.kind == "head" and self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing: got true with method head; nothing below the head has a gradient, so there "
                "is nothing to recompute. Leave it out"
            )
        return self
