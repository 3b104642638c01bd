"""Which base model, in which precision: as asked (`BaseSpec`) and as locked (`LockedBase`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from petl_ray.spec import Pinned, Spec

Precision = Literal["fp32", "bf16", "fp16"]
Quantization = Literal["none", "nf4"]
TaskType = Literal["classification", "causal_lm"]


class BaseSpec(Spec):
    """A base model as a plan asks for it.

    `source` is `package:NAME` (an installed Python package that carries a model), a local directory, or a Hugging Face
    id (`owner/name`, optionally `hub:owner/name`). `revision` belongs to hub ids only; the lock turns it into 40 hex
    digits. `precision: auto` is decided in the lock, for the machines that train.
    """

    source: str = Field(min_length=1, max_length=1024)
    revision: str | None = Field(default=None, max_length=128)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    quantization: Quantization = "none"

    @field_validator("source")
    @classmethod
    def _plain(cls, source: str) -> str:
        if "\0" in source or source != source.strip():
            raise PydanticCustomError(
                "source", "got {source}; a source has no blanks around it. Trim it.", {"source": repr(source)}
            )
        return source


class LockedBase(Spec):
    """A base model pinned to its bytes: `pinned.digest` covers configuration, tokenizer and weights."""

    pinned: Pinned
    precision: Precision
    quantization: Quantization = "none"
