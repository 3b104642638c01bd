"""Adapter files: written to the same bytes every time, read as if an enemy had written them.

`adapter_model.safetensors`, `adapter_config.json` (PEFT's format for LoRA and IA3) and `card.json`. Reading checks, in this
order and before any weight is touched: no pickles, sizes, card, base, configuration (allow-listed keys and ranges), the
safetensors header (exact set of names, shapes, types); then that every value is finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from petl_ray.errors import AdapterError
from petl_ray.methods.card import AdapterCard
from petl_ray.methods.parts import Part
from petl_ray.methods.sites import Anatomy, anatomy
from petl_ray.methods.table import METHODS, all_parts

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "card.json"
PREFIX = "base_model.model."  # what PEFT puts before every module's name
TEXT_LIMIT_BYTES = 8 << 20
HEADER_LIMIT_BYTES = 8 << 20
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
TYPES = {"F32": 4, "F16": 2, "BF16": 2}


class KnownBase(Protocol):
    """What reading needs of a base: its model, its digest and the task type it was loaded for."""

    model: Any
    task_type: Any

    @property
    def digest(self) -> str:
        """sha256 (hex) of the pinned base."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that passed every check: its card and its fp32 tensors by name (without PEFT's prefix)."""

    card: AdapterCard
    tensors: Mapping[str, Tensor]

    @property
    def method(self) -> Any:
        """The method's spec."""
        return self.card.method


def write_adapter(directory: Path, tensors: Mapping[str, Tensor], found: Anatomy, card: AdapterCard) -> tuple[str, ...]:
    """Write the three files below `directory` and return their names; equal input gives equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = _shapes(all_parts(card.method, found, len(card.labels)))
    plain = {
        PREFIX + name: tensors[name].detach().to("cpu", torch.float32).reshape(shapes[PREFIX + name]).contiguous()
        for name in sorted(tensors)
    }
    save_file(plain, directory / WEIGHTS, metadata={"format": "pt"})
    _write_json(directory / CONFIG, METHODS[card.method.kind].config(card.method, found))
    _write_json(directory / CARD, card.model_dump(mode="json"))
    return WEIGHTS, CONFIG, CARD


def read_adapter(directory: Path, base: KnownBase) -> AdapterFiles:
    """Read an adapter for `base` and trust nothing. Raises AdapterError for whatever is not exactly as it should be."""
    _refuse_pickles(directory)
    card = read_card(directory)
    if card.base != base.digest:
        raise AdapterError(
            CARD, f"made for base {card.base[:12]}", f"this is base {base.digest[:12]}", "Serve it on its own base"
        )
    if card.task_type != base.task_type:
        raise AdapterError(CARD, f"a {card.task_type} adapter", f"the base was loaded for {base.task_type}")
    found = anatomy(base.model)
    parts = all_parts(card.method, found, len(card.labels))
    config = _read_json(directory / CONFIG)
    configured = all_parts(METHODS[card.method.kind].read_config(config, found), found, len(card.labels))
    if len(parts) != len(configured) or not all(a.same_sum(b) for a, b in zip(parts, configured, strict=True)):
        raise AdapterError(CONFIG, "it describes another adapter than card.json", "one of them is wrong")
    tensors = _read_tensors(directory / WEIGHTS, _shapes(parts))
    inside = {name: part.shapes[role] for part in parts for role, name in part.names().items()}
    return AdapterFiles(card, {name: tensor.reshape(inside[name]) for name, tensor in tensors.items()})


def read_card(directory: Path) -> AdapterCard:
    """The card alone; raises AdapterError if it is absent or malformed."""
    try:
        return AdapterCard.model_validate(_read_json(directory / CARD))
    except ValidationError as error:
        first = error.errors()[0]
        raise AdapterError(f"{CARD}: {'.'.join(map(str, first['loc']))}", first["msg"]) from None


def _shapes(parts: tuple[Part, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes in files, by full name."""
    return {PREFIX + name: part.stored_shape(role) for part in parts for role, name in part.names().items()}


def _refuse_pickles(directory: Path) -> None:
    if not directory.is_dir():
        raise AdapterError(str(directory), "no such directory", do="Fetch the adapter again")
    for path in directory.iterdir():
        if path.suffix.lower() in PICKLES:
            raise AdapterError(path.name, "a pickle lies beside the adapter", "pickles run code when read", "Remove it")


def _read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    limit = 8 + HEADER_LIMIT_BYTES + sum(4 * math.prod(shape) for shape in shapes.values())
    raw = _read_bytes(path, limit)
    _check_header(raw, shapes)
    try:
        tensors = load(raw)
    except SafetensorError as error:
        raise AdapterError(WEIGHTS, "its weights do not match its header", str(error), "Fetch it again") from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{WEIGHTS}: {name}", "holds NaN or infinite values", "its answers would be noise")
    return {name.removeprefix(PREFIX): tensor.to(torch.float32) for name, tensor in tensors.items()}


def _check_header(raw: bytes, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Names, shapes, types and the file's length, from the header alone."""
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(HEADER_LIMIT_BYTES, len(raw) - 8):
        raise AdapterError(WEIGHTS, f"{len(raw)} bytes", "its header is cut off or too long", "Fetch it again")
    header = _parse(raw[8 : 8 + length], WEIGHTS)
    header.pop("__metadata__", None)
    if extra := sorted(set(header) - set(shapes)):
        raise AdapterError(WEIGHTS, f"holds {extra[0][:200]!r}", "no tensor of that name belongs to this adapter")
    if missing := sorted(set(shapes) - set(header)):
        raise AdapterError(WEIGHTS, f"lacks {missing[0]!r}", "an adapter is whole or it is none")
    size = 0
    for name, entry in header.items():
        kind, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if kind not in TYPES:
            raise AdapterError(f"{WEIGHTS}: {name}", f"got type {kind}", f"only {', '.join(TYPES)} are read")
        if shape != list(shapes[name]):
            raise AdapterError(f"{WEIGHTS}: {name}", f"got shape {shape}", f"{list(shapes[name])} is expected")
        size += TYPES[kind] * math.prod(shapes[name])
    if len(raw) != 8 + length + size:
        raise AdapterError(WEIGHTS, f"{len(raw)} bytes", f"{8 + length + size} are expected", "Fetch it again")


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise AdapterError(path.name, f"{path.stat().st_size} bytes", f"at most {limit} can belong to this adapter")
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(
            path.name, "cannot be read", error.strerror or str(error), "Fetch the adapter again"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    return _parse(_read_bytes(path, TEXT_LIMIT_BYTES), path.name)


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise AdapterError(name, "is no JSON", str(error)[:120], "Fetch the adapter again") from None
    if not isinstance(value, dict):
        raise AdapterError(name, "is no JSON object", do="Fetch the adapter again")
    return value


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
