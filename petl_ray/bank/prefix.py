"""The frozen prefix: what the layers below a slot's lowest adapted one make of a row never changes.

It can be computed once and kept. A forward pass then begins above it: the layers below hand on what was kept instead of
computing, while embeddings, masks and positions stay the model's own affair. Nothing of the model is rewritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from petl_ray.bank.wiring import PlainLayout, in_force
from petl_ray.methods.sites import Anatomy
from petl_ray.models.faults import is_device_fault, is_out_of_memory
from petl_ray.models.loading import LoadedBase

PROBE_TOKENS = 4
# what a model's own code raises where it is handed something else than it expects
_MISUNDERSTOOD = (ValueError, TypeError, AttributeError, LookupError, AssertionError, RuntimeError)


@dataclass(frozen=True)
class States:
    """Hidden states [rows, length, width] behind the first `depth` layers, in the base's type."""

    depth: int
    values: Tensor


class FrozenPrefix:
    """The numbered layers of one model, as far as they form one stack that a pass can begin in the middle of."""

    def __init__(self, loaded: LoadedBase, found: Anatomy) -> None:
        self._loaded = loaded
        paths = {site.number: site.layer for site in found.sites if site.number is not None and not site.head}
        one_stack = len({site.layer for site in found.sites if site.layer}) == len(paths) == found.layers
        self._layers = [loaded.model.get_submodule(paths[number]) for number in sorted(paths)] if one_stack else []
        self._beside: tuple[Any, ...] | None = None  # what the layers answer behind the states; None: no tuple at all
        self.holds = cache(self._holds)

    @torch.no_grad()
    def states(self, depth: int, input_ids: Tensor, attention_mask: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """What the plain base's first `depth` layers make of rows [rows, length]: [rows, length, width]."""
        found: list[Tensor] = []

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            self._beside = output[1:] if isinstance(output, tuple) else None
            found.append(output if self._beside is None else output[0])
            raise _Reached

        hook = self._layers[depth - 1].register_forward_hook(stop)
        try:
            with in_force(PlainLayout()), contextlib.suppress(_Reached):
                self._loaded.model.base_model(input_ids=input_ids, attention_mask=attention_mask, **extra)
        finally:
            hook.remove()
        return found[0]

    @contextlib.contextmanager
    def resumed(self, states: States | None) -> Iterator[None]:
        """Let forward passes begin behind `states`; None: at the beginning, as always."""
        below = self._layers[: states.depth] if states else []
        try:
            for layer in below:
                layer.forward = _handing_on(self._answer(states))
            yield
        finally:
            for layer in below:
                layer.__dict__.pop("forward", None)

    def _answer(self, states: States | None) -> Any:
        assert states is not None
        return states.values if self._beside is None else (states.values, *self._beside)

    @torch.no_grad()
    def _holds(self, depth: int) -> bool:
        """Whether a pass that begins behind `depth` layers gives what a whole one gives; tried out once."""
        if not 0 < depth <= len(self._layers) or any("forward" in layer.__dict__ for layer in self._layers):
            return False
        try:
            return self._tried(depth)
        except _MISUNDERSTOOD as error:  # layers that talk to each other otherwise: their passes begin at the beginning
            if is_out_of_memory(error) or is_device_fault(error):
                raise
            return False

    def _tried(self, depth: int) -> bool:
        model: Any = self._loaded.model
        ids = torch.arange(PROBE_TOKENS, device=self._loaded.device).unsqueeze(0)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        kept = States(depth, self.states(depth, ids, batch["attention_mask"], {}))
        if any(one is not None for one in self._beside or ()):
            return False  # layers that hand on more than states
        with in_force(None):
            whole = model(**batch).logits
            with self.resumed(States(depth, torch.zeros_like(kept.values))):
                unlike = model(**batch).logits
            with self.resumed(kept):
                resumed = model(**batch).logits
        return torch.allclose(resumed, whole, rtol=1e-3, atol=1e-3) and not torch.equal(unlike, whole)


class _Reached(Exception):
    """The layer that was waited for has answered."""


def _handing_on(output: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: output
