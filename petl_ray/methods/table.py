"""The table of methods. A new method is one file and one line here."""

from __future__ import annotations

import math
from typing import Any

from petl_ray.errors import AdapterError
from petl_ray.methods.bottleneck import Bottleneck
from petl_ray.methods.head import Head
from petl_ray.methods.ia3 import Ia3
from petl_ray.methods.lora import Lora
from petl_ray.methods.parts import Method, Part, head_parts
from petl_ray.methods.sites import Anatomy, anatomy, lowest_layer

METHODS: dict[str, Method] = {
    "lora": Lora(),
    "ia3": Ia3(),
    "bottleneck": Bottleneck(),
    "head": Head(),
}


def all_parts(spec: Any, found: Anatomy, labels: int) -> tuple[Part, ...]:
    """Everything one slot holds: the method's parts and, for classification, the head with `labels` rows.

    Raises AdapterError where the method does not fit the model or the labels do not fit the task.
    """
    if found.head_modules and labels < 2:
        raise AdapterError("labels", f"got {labels}", "a classification tells at least two apart", "Check the dataset")
    if not found.head_modules and labels:
        raise AdapterError("labels", f"got {labels}", "a causal language model has no labels", "Give 0")
    parts = METHODS[spec.kind].parts(spec, found)
    return (*parts, *head_parts(found, labels)) if found.head_modules else parts


def count_parameters(model: Any, spec: Any, labels: int) -> int:
    """How many parameters `spec` trains on `model`, head included. Nothing is allocated: a skeleton will do."""
    parts = all_parts(spec, anatomy(model), labels)
    return sum(math.prod(shape) for part in parts for shape in part.shapes.values())


def lowest_adapted_layer(model: Any, spec: Any) -> int:
    """The number (from 0) of the lowest layer of `model` that `spec` changes: everything below computes as the plain base
    does, whatever is trained. The number of layers itself where only the head is trained."""
    found = anatomy(model)
    return lowest_layer(found, [part.site for part in METHODS[spec.kind].parts(spec, found)])
