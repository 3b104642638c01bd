"""How the bank gets into a model without changing it: the `forward` of its linear maps and norms asks a layout first.

Nothing is replaced or renamed, so `state_dict`, quantised weights and attributes stay as they are, and detaching leaves
the base bit for bit. With no layout in force the model answers as the plain base.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petl_ray.errors import AdapterError
from petl_ray.methods.sites import Anatomy, Site, anatomy
from petl_ray.models.products import Matrix, frozen_linear, frozen_matrix


class Layout(Protocol):
    """What one forward does at each site: which rows belong to which slots, and what those slots add there."""

    def linear(self, wired: Wired, x: Tensor) -> Tensor:
        """The output [rows, …, out] of a linear map for x [rows, …, in]."""

    def norm(self, wired: Wired, x: Tensor) -> Tensor:
        """The output of a norm, shaped like x."""


_LAYOUT: ContextVar[Layout | None] = ContextVar("petl_ray_bank_layout", default=None)


def layout_in_force() -> Layout | None:
    """The layout of the forward that is running in this context."""
    return _LAYOUT.get()


@contextlib.contextmanager
def in_force(layout: Layout | None) -> Iterator[None]:
    """Let `layout` answer at the sites while this context lasts."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


@dataclass(frozen=True)
class NormForm:
    """A norm without its weights: LayerNorm, or RMSNorm with y = (offset + weight) · x / rms(x)."""

    rms: bool
    eps: float
    offset: float = 0.0

    def bare(self, x: Tensor) -> Tensor:
        """x normalised over its last dimension, in fp32, without weight and bias."""
        x = x.float()
        if self.rms:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return F.layer_norm(x, x.shape[-1:], None, None, self.eps)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The norm of x with weights that broadcast to it, in x's type."""
        if not self.rms and weight.dim() == 1:
            return F.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps).to(x.dtype)
        y = self.bare(x) * (weight + self.offset)
        return (y if bias is None else y + bias).to(x.dtype)


@dataclass
class Wired:
    """One site of a model under wires: the module, its own forward, and its place in the order of sites."""

    site: Site
    module: nn.Module
    inner: Callable[..., Tensor]
    index: int
    patched_before: bool

    @cached_property
    def form(self) -> NormForm:
        """The norm's form, proven against the module on a random input; raises AdapterError for an unknown one."""
        eps = next(
            (getattr(self.module, name) for name in ("variance_epsilon", "eps") if hasattr(self.module, name)), 0
        )
        rms = not isinstance(self.module, nn.LayerNorm)
        weight = self.module.get_parameter("weight")
        bias = getattr(self.module, "bias", None)
        probe = torch.linspace(-1, 2, self.site.width, device=weight.device, dtype=weight.dtype).unsqueeze(0)
        with torch.no_grad():
            expected = self.inner(probe).float()
            close = 1e-4 if weight.dtype == torch.float32 else 3e-2
            for offset in (0.0, 1.0):
                form = NormForm(rms, float(eps or 0.0), offset)
                found = form.apply(probe, weight.float(), None if bias is None else bias.float()).float()
                if torch.allclose(found, expected, rtol=close, atol=close):
                    return form
        raise AdapterError(self.site.name, f"a norm of kind {type(self.module).__name__}", "its formula is not known")

    @cached_property
    def matrix(self) -> Matrix | None:
        """The frozen matrix [out, in] of a linear map that is nothing else; None for anything that computes otherwise."""
        return frozen_matrix(self.module) if self.site.kind == "linear" and not self.patched_before else None

    def base(self, x: Tensor) -> Tensor:
        """What the frozen module itself makes of x."""
        return self.inner(x) if self.matrix is None else frozen_linear(x, self.matrix, self.base_bias)

    @property
    def base_bias(self) -> Tensor | None:
        """The frozen bias [out], None where there is none."""
        return getattr(self.module, "bias", None)

    def base_value(self, role: str) -> Tensor | None:
        """The base's own `weight` or `bias`, None where it has none."""
        value = getattr(self.module, role, None)
        return value.detach() if isinstance(value, Tensor) else None


class PlainLayout:
    """The base alone, by the products that every layout makes: a row has the bits it has in any company there."""

    def linear(self, wired: Wired, x: Tensor) -> Tensor:
        """W x."""
        return wired.base(x)

    def norm(self, wired: Wired, x: Tensor) -> Tensor:
        """The base's norm."""
        return wired.base(x)


class Wiring:
    """All sites of one model under wires. Banks on the same model share it; the last one to leave takes it down."""

    _live: weakref.WeakKeyDictionary[nn.Module, Wiring] = weakref.WeakKeyDictionary()

    def __init__(self, model: Any) -> None:
        self.anatomy: Anatomy = anatomy(model)
        self.users = 0
        modules = dict(model.named_modules())
        self.sites: dict[str, Wired] = {}
        for index, site in enumerate(self.anatomy.sites):
            module = modules[site.name]
            self.sites[site.name] = Wired(site, module, module.forward, index, "forward" in module.__dict__)
        for wired in self.sites.values():
            wired.module.forward = _forward(wired)

    @classmethod
    def attach(cls, model: Any) -> Wiring:
        """The wiring of `model`, made if there is none yet."""
        wiring = cls._live.get(model) or cls(model)
        cls._live[model] = wiring
        wiring.users += 1
        return wiring

    def detach(self, model: Any) -> None:
        """Leave; the last user restores every module's own forward."""
        self.users -= 1
        if self.users == 0:
            for wired in self.sites.values():
                del wired.module.forward
                if wired.patched_before:
                    wired.module.forward = wired.inner
            self._live.pop(model, None)


def _forward(wired: Wired) -> Callable[..., Tensor]:
    inner, linear = wired.inner, wired.site.kind == "linear"

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layout = _LAYOUT.get()
        if layout is None:
            return inner(x, *args, **kwargs)
        return layout.linear(wired, x) if linear else layout.norm(wired, x)

    return forward
