"""Base models: found, pinned by digest, loaded frozen and quietly, in the precision that pays on this machine.

In: `BaseSpec` (a source), or `LockedBase` (its bytes). Out: `LockedBase`, or `LoadedBase` (model, tokenizer, device).
Must not know: adapters, tasks, runs, Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from petl_ray.models.spec import BaseSpec, LockedBase, Precision, Quantization, TaskType

if TYPE_CHECKING:
    from petl_ray.models.device import choose_device, choose_precision, memory_free_bytes, use_threads
    from petl_ray.models.loading import LoadedBase, load_base, load_skeleton
    from petl_ray.models.sources import resolve

_DOORS = {  # torch and transformers are loaded when one of these is first used
    "resolve": "sources",
    "LoadedBase": "loading",
    "load_base": "loading",
    "load_skeleton": "loading",
    "use_threads": "device",
    "choose_device": "device",
    "choose_precision": "device",
    "memory_free_bytes": "device",
}

__all__ = [
    "BaseSpec",
    "LoadedBase",
    "LockedBase",
    "Precision",
    "Quantization",
    "TaskType",
    "choose_device",
    "choose_precision",
    "load_base",
    "load_skeleton",
    "memory_free_bytes",
    "resolve",
    "use_threads",
]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)
    raise AttributeError(name)
