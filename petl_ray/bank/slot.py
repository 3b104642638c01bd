"""One slot of the training layout: what its method put at which site, as fp32 parameters, and its own randomness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from petl_ray.bank.wiring import Wiring
from petl_ray.methods.parts import Part, first_value
from petl_ray.methods.table import all_parts


@dataclass
class LivePart:
    """A part with its parameters, role → tensor (fp32, on the base's device)."""

    plan: Part
    values: dict[str, nn.Parameter]

    @property
    def plain_lora(self) -> bool:
        """Whether this is A and B and nothing else."""
        return self.plan.op == "lora" and len(self.values) == 2


@dataclass
class Slot:
    """An occupied slot. `generator` feeds its dropout and nothing else, so a neighbour can never shift its draws."""

    method: Any
    labels: int
    parts: dict[str, LivePart]
    head_names: frozenset[str]
    generator: torch.Generator
    parameters: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = {
            live.plan.names()[role]: value for live in self.parts.values() for role, value in live.values.items()
        }
        self.drops = any(live.plan.dropout > 0 for live in self.parts.values())

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
    parts = {}
    for plan in all_parts(method, wiring.anatomy, labels):
        wired = wiring.sites[plan.site.name]
        if plan.site.kind == "norm":
            _ = wired.form  # an unknown norm is refused here rather than in the first forward
        values = {}
        for role, name in plan.names().items():
            first = first_value(name, tuple(plan.shapes[role]), plan.init[role], seed, wired.base_value(role))
            values[role] = nn.Parameter(first.to(device))
        assert plan.site.name not in parts, f"two parts at {plan.site.name}"
        parts[plan.site.name] = LivePart(plan, values)
    heads = frozenset(name for live in parts.values() if live.plan.site.head for name in live.plan.names().values())
    return Slot(method, labels, parts, heads, torch.Generator().manual_seed(seed))
