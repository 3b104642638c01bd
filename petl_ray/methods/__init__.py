"""Adapter methods: what may be asked, where its parameters sit in any model, how its files look and are read safely.

In: a `MethodSpec` and a model's modules. Out: parts (shapes, initial values, sites), parameter counts, adapter files.
Must not know: how a base is loaded, how slots are trained or served, tasks, Ray. A new method is one file and a line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from petl_ray.methods.card import AdapterCard
from petl_ray.methods.spec import BottleneckSpec, HeadSpec, Ia3Spec, LoraSpec, MethodSpec

if TYPE_CHECKING:
    from petl_ray.methods.files import AdapterFiles, read_adapter, write_adapter
    from petl_ray.methods.table import METHODS, count_parameters, lowest_adapted_layer

_DOORS = {  # torch is loaded when one of these is first used
    "AdapterFiles": "files",
    "read_adapter": "files",
    "write_adapter": "files",
    "METHODS": "table",
    "count_parameters": "table",
    "lowest_adapted_layer": "table",
}

__all__ = [
    "METHODS",
    "AdapterCard",
    "AdapterFiles",
    "BottleneckSpec",
    "HeadSpec",
    "Ia3Spec",
    "LoraSpec",
    "MethodSpec",
    "count_parameters",
    "lowest_adapted_layer",
    "read_adapter",
    "write_adapter",
]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)
    raise AttributeError(name)
