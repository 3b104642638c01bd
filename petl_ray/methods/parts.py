"""What a method puts at a site: shapes and first values, before a single byte is allocated."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from petl_ray.methods.sites import Anatomy, Site

Op = Literal["lora", "bottleneck", "replace"]


@dataclass(frozen=True)
class Init:
    """First values of a tensor: zeros, ones, `uniform` in ±value, `truncated` normal of std value cut at two, `normal`
    of std value, or `base`: a copy of what the base has there."""

    kind: Literal["zeros", "ones", "uniform", "truncated", "normal", "base"]
    value: float = 0.0


@dataclass(frozen=True)
class Part:
    """Tensors of one adapter at one site. What the bank does with them is `op`:

    - `lora`: out_scale * (W (in_scale * x) + scale · B A (in_scale * x)); roles `lora_A.weight` [rank, in] and
      `lora_B.weight` [out, rank] (both or neither), `in_scale` [in] and `out_scale` [out], as a method wants them;
    - `bottleneck`: y + up(act(down(y))) on the site's output; roles `bottleneck_down.weight` [size, width], `.bias`
      [size], `bottleneck_up.weight` [width, size], `.bias` [width];
    - `replace`: the module's own `weight` and `bias`, trained (heads, norms).

    `stored` names the roles that files know by another name or in another shape: role → (name, shape).
    """

    site: Site
    op: Op
    shapes: Mapping[str, tuple[int, ...]]
    init: Mapping[str, Init]
    scale: float = 1.0
    dropout: float = 0.0
    activation: str = "none"
    stored: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def names(self) -> dict[str, str]:
        """Role → the tensor's full name, unique within an adapter and used in files."""
        return {role: f"{self.site.name}.{self.stored.get(role, (role,))[0]}" for role in self.shapes}

    def stored_shape(self, role: str) -> tuple[int, ...]:
        """The shape a tensor has in files."""
        return tuple(self.stored[role][1] if role in self.stored else self.shapes[role])

    def same_sum(self, other: Part) -> bool:
        """True if both compute the same function of their tensors once trained (dropout and first values aside)."""
        mine = (self.site, self.op, dict(self.shapes), self.scale, self.activation)
        return mine == (other.site, other.op, dict(other.shapes), other.scale, other.activation)


class Method(Protocol):
    """One adapter method: what it puts where, and how its configuration file reads. One file, one line in the table."""

    kind: str

    def parts(self, spec: Any, found: Anatomy) -> tuple[Part, ...]:
        """The adapter's parts beside the head; raises AdapterError where the model has no place for them."""

    def config(self, spec: Any, found: Anatomy) -> dict[str, Any]:
        """The content of `adapter_config.json`."""

    def read_config(self, config: Mapping[str, Any], found: Anatomy) -> Any:
        """The spec that a foreign `adapter_config.json` stands for; raises AdapterError for what is not allowed."""


def head_parts(found: Anatomy, labels: int) -> tuple[Part, ...]:
    """The classification head of one slot: a copy of each leaf, the last one with `labels` rows and fresh values."""
    return tuple(_head_part(site, found, labels) for site in found.heads)


def _head_part(site: Site, found: Anatomy, labels: int) -> Part:
    if site.name != found.label:
        return replaced(site)
    shapes: dict[str, tuple[int, ...]] = {"weight": (labels, site.in_width)}
    init = {"weight": Init("normal", found.initializer_range)}
    if site.bias:
        shapes["bias"], init["bias"] = (labels,), Init("zeros")
    return Part(site, "replace", shapes, init)


def replaced(site: Site) -> Part:
    """A trained copy of a leaf of the base, beginning with the base's values."""
    weight = (site.width, site.in_width) if site.kind == "linear" else (site.width,)
    shapes: dict[str, tuple[int, ...]] = {"weight": weight}
    if site.bias:
        shapes["bias"] = (site.width,)
    return Part(site, "replace", shapes, {role: Init("base") for role in shapes})


def first_value(name: str, shape: tuple[int, ...], init: Init, seed: int, base: Tensor | None) -> Tensor:
    """The fp32 tensor a slot begins with. It depends on (seed, name, shape) only, not on neighbours or order."""
    if init.kind == "base":
        if base is None or tuple(base.shape) != shape:
            raise ValueError(f"{name}: the base has nothing of shape {shape} to copy")
        return base.detach().to("cpu", torch.float32).clone()
    if init.kind in ("zeros", "ones"):
        return torch.full(shape, float(init.kind == "ones"))
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    value = torch.empty(shape)
    if init.kind == "uniform":
        return value.uniform_(-init.value, init.value, generator=generator)
    if init.kind == "normal":
        return value.normal_(0.0, init.value, generator=generator)
    return torch.nn.init.trunc_normal_(value, 0.0, init.value, -2 * init.value, 2 * init.value, generator)


def kaiming(in_width: int) -> Init:
    """Kaiming uniform with a = √5, LoRA's first value of A: bound 1 / √in."""
    return Init("uniform", 1.0 / math.sqrt(in_width))
