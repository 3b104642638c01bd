"""A checkpoint: named tensors as safetensors and facts as JSON, nothing pickled, verified when read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from petl_ray.errors import CorruptionError

TENSORS, FACTS = "checkpoint.safetensors", "checkpoint.json"


def write_checkpoint(directory: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write both files below `directory`, which is made if need be. Tensors go to the CPU and keep their type."""
    directory.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, directory / TENSORS)
    (directory / FACTS).write_text(json.dumps(dict(facts), sort_keys=True, allow_nan=False), encoding="utf-8")


def read_checkpoint(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and facts of a checkpoint. Raises CorruptionError where they cannot be read."""
    try:
        tensors = load_file(directory / TENSORS)
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptionError("checkpoint", str(error), "its files are broken", "Let the step begin again") from error
    return tensors, facts


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix/`, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def prefixed(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The same tensors with names that begin with `prefix/`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}
