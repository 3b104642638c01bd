"""One slot of the training layout: what its method put at which site, as fp32 parameters, and its own randomness.

All parameters of a slot are views of one flat tensor, and so are their gradients: what an optimizer does, what a cast to
the base's type does, and what workers add up is then one operation and not one a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from petl_ray.bank.wiring import Wiring
from petl_ray.methods.parts import Part, first_value
from petl_ray.methods.table import all_parts

DOWN, UP = "lora_A.weight", "lora_B.weight"  # [rank, in], [out, rank]


class Group(NamedTuple):
    """What an optimizer may treat alike: of the head or not, vectors or matrices, LoRA's B or not."""

    head: bool
    vector: bool
    up: bool


@dataclass(frozen=True)
class Flat:
    """A slot's parameters and gradients, fp32 [all of them]; `ranges` says where each lies (begin, end), `groups` where
    those of one group lie together."""

    values: Tensor
    gradients: Tensor
    ranges: Mapping[str, tuple[int, int]]
    groups: Mapping[Group, tuple[int, int]]


@dataclass
class LivePart:
    """A part with its parameters, role → tensor (fp32, on the base's device); `working` are they in the base's type."""

    plan: Part
    values: dict[str, nn.Parameter]
    working: dict[str, Tensor] = field(default_factory=dict)

    @property
    def plain_lora(self) -> bool:
        """Whether this is A and B and nothing else."""
        return self.plan.op == "lora" and set(self.values) == {DOWN, UP}


@dataclass(eq=False)
class Slot:
    """An occupied slot. `generator` feeds its dropout and nothing else, so a neighbour can never shift its draws."""

    method: Any
    labels: int
    parts: dict[str, LivePart]
    flat: Flat
    generator: torch.Generator
    parameters: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = {
            live.plan.names()[role]: value for live in self.parts.values() for role, value in live.values.items()
        }
        self.drops = any(live.plan.dropout > 0 for live in self.parts.values())
        scales = {live.plan.scale for live in self.parts.values() if DOWN in live.values} or {1.0}
        self.scale, self.one_scale = max(scales), len(scales) == 1

    def refresh(self, dtype: torch.dtype) -> None:
        """Bring `working` up to what the parameters are now, in `dtype`."""
        cast = self.flat.values.to(dtype)
        for live in self.parts.values():
            for role, name in live.plan.names().items():
                start, stop = self.flat.ranges[name]
                live.working[role] = cast[start:stop].view(live.values[role].shape)

    def hold_gradients(self) -> None:
        """Let the parameters' gradients be views of the flat ones again, at zero, where somebody took them away."""
        first = next(iter(self.parameters.values()), None)
        if first is None or first.grad is not None:
            return
        self.flat.gradients.zero_()
        for name, parameter in self.parameters.items():
            start, stop = self.flat.ranges[name]
            parameter.grad = self.flat.gradients[start:stop].view(parameter.shape)

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters, by name; every one must be there in its shape."""
        if set(values) != set(self.parameters):
            raise KeyError(sorted(set(values) ^ set(self.parameters))[0])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if values[name].shape != parameter.shape:
                    raise ValueError(f"{name}: shape {tuple(values[name].shape)}, not {tuple(parameter.shape)}")
                parameter.copy_(values[name])


def make_slot(wiring: Wiring, method: Any, labels: int, seed: int, device: torch.device) -> Slot:
    """A slot with first values drawn from `seed`; raises AdapterError where the method does not fit the model."""
    plans = all_parts(method, wiring.anatomy, labels)
    firsts: dict[str, Tensor] = {}
    for plan in plans:
        wired = wiring.sites[plan.site.name]
        if plan.site.kind == "norm":
            _ = wired.form  # an unknown norm is refused here rather than in the first forward
        for role, name in plan.names().items():
            assert name not in firsts, f"two parts at {plan.site.name}"
            firsts[name] = first_value(name, tuple(plan.shapes[role]), plan.init[role], seed, wired.base_value(role))
    heads = frozenset(name for plan in plans if plan.site.head for name in plan.names().values())
    flat = _flat(firsts, heads, device)
    parts = {
        plan.site.name: LivePart(
            plan, {role: _view(flat, name, firsts[name].shape) for role, name in plan.names().items()}
        )
        for plan in plans
    }
    return Slot(method, labels, parts, flat, torch.Generator().manual_seed(seed))


def _flat(firsts: Mapping[str, Tensor], heads: frozenset[str], device: torch.device) -> Flat:
    """First values behind each other, group by group, by name within a group."""

    def group(name: str) -> Group:
        return Group(name in heads, firsts[name].dim() == 1, name.endswith(".lora_B.weight"))

    names = sorted(firsts, key=lambda name: (group(name), name))
    values = (
        torch.cat([firsts[name].reshape(-1) for name in names]).to(device) if names else torch.zeros(0, device=device)
    )
    ranges: dict[str, tuple[int, int]] = {}
    groups: dict[Group, tuple[int, int]] = {}
    at = 0
    for name in names:
        ranges[name] = (at, at + firsts[name].numel())
        groups[group(name)] = (groups.get(group(name), (at, at))[0], ranges[name][1])
        at = ranges[name][1]
    return Flat(values, torch.zeros_like(values), ranges, groups)


def _view(flat: Flat, name: str, shape: torch.Size) -> nn.Parameter:
    start, stop = flat.ranges[name]
    parameter = nn.Parameter(flat.values[start:stop].view(shape))
    parameter.grad = flat.gradients[start:stop].view(shape)
    return parameter
