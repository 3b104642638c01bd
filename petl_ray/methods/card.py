"""The card that travels with an adapter: what serving must know and the weights do not say."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from petl_ray.methods.spec import MethodSpec
from petl_ray.spec import Spec

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=256)]


class AdapterCard(Spec):
    """`card.json`: task, labels in the order of the logits, length limit, and the digests an answer depends on.

    It holds no path, host, time or run, so that equal trainings write equal bytes. `base` is the digest of the locked
    base; `tokenizer` that of its tokenizer files; `template` how a prompt and its completion are joined (causal LM).
    """

    version: Literal[1] = 1
    task: Text
    task_type: Literal["classification", "causal_lm"]
    labels: Annotated[tuple[Text, ...], Field(max_length=65536)] = ()
    max_length: int = Field(ge=1, le=1_000_000)
    base: Sha256
    precision: Literal["fp32", "bf16", "fp16"]
    quantization: Literal["none", "nf4"] = "none"
    tokenizer: Sha256
    method: MethodSpec
    template: Annotated[str, Field(max_length=65536)] | None = None

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Self:
        if self.task_type == "classification" and len(self.labels) < 2:
            raise ValueError(f"got {len(self.labels)} labels; a classification tells at least two apart")
        if self.task_type == "causal_lm" and self.labels:
            raise ValueError("got labels; a causal language model has none")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("got a label twice; labels are names of different things")
        return self
