"""The classification head alone: no adapter, the yardstick of all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petl_ray.errors import AdapterError
from petl_ray.methods.parts import Part
from petl_ray.methods.plain import plain_config, read_plain_config
from petl_ray.methods.sites import Anatomy
from petl_ray.methods.spec import HeadSpec


class Head:
    """Nothing beside the head that every classification slot has."""

    kind = "head"

    def parts(self, spec: HeadSpec, found: Anatomy) -> tuple[Part, ...]:
        """None; raises AdapterError for a language model, where nothing would be trained."""
        if not found.head_modules:
            raise AdapterError(
                "method.kind",
                "got head for a causal language model",
                "its output layer belongs to the frozen base, so nothing would be trained",
                "Choose lora, bottleneck or ia3",
            )
        return ()

    def config(self, spec: HeadSpec, found: Anatomy) -> dict[str, Any]:
        """The spec itself."""
        return plain_config(spec)

    def read_config(self, config: Mapping[str, Any], found: Anatomy) -> HeadSpec:
        """The spec, read back strictly."""
        return read_plain_config(HeadSpec, config)
