"""Bottleneck adapters (Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petl_ray.errors import AdapterError
from petl_ray.methods.parts import Init, Part, replaced
from petl_ray.methods.plain import plain_config, read_plain_config
from petl_ray.methods.sites import Anatomy, Site, output_projections
from petl_ray.methods.spec import BottleneckSpec

FIRST_STD = 1e-2  # "weights drawn from a zero-mean Gaussian with standard deviation 1e-2 truncated to two": section 3.6


class Bottleneck:
    """Two adapters per layer, each with a residual of its own, so that near-zero weights begin as the identity."""

    kind = "bottleneck"

    def parts(self, spec: BottleneckSpec, found: Anatomy) -> tuple[Part, ...]:
        """An adapter after each output projection, and each layer's norms."""
        places = output_projections(found)
        if not places:
            raise AdapterError("method.kind", "got bottleneck", "this model has no numbered layers with linear maps")
        width = places[0].width
        norms = [site for site in found.sites if site.kind == "norm" and site.layer and site.width == width]
        return (*(_adapter(site, spec) for site in places), *(replaced(site) for site in norms))

    def config(self, spec: BottleneckSpec, found: Anatomy) -> dict[str, Any]:
        """The spec itself: PEFT has no such method, so no other reader is served."""
        return plain_config(spec)

    def read_config(self, config: Mapping[str, Any], found: Anatomy) -> BottleneckSpec:
        """The spec, read back strictly."""
        return read_plain_config(BottleneckSpec, config)


def _adapter(site: Site, spec: BottleneckSpec) -> Part:
    shapes = {
        "bottleneck_down.weight": (spec.size, site.width),
        "bottleneck_down.bias": (spec.size,),
        "bottleneck_up.weight": (site.width, spec.size),
        "bottleneck_up.bias": (site.width,),
    }
    init = {role: Init("truncated", FIRST_STD) if role.endswith("weight") else Init("zeros") for role in shapes}
    return Part(site, "bottleneck", shapes, init, activation=spec.activation)
