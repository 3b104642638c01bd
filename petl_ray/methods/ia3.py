"""(IA)³ (Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
section 3.3) in PEFT's file format: learned vectors that scale keys, values and what the feed-forward part computes inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petl_ray.errors import AdapterError
from petl_ray.methods.parts import Init, Part
from petl_ray.methods.peft_format import check_peft_config, names_in, peft_head, spec_of
from petl_ray.methods.sites import (
    KEYS,
    VALUES,
    Anatomy,
    Site,
    feedforward_outputs,
    last_name,
    module_names,
    short_names,
    targeted,
)
from petl_ray.methods.spec import IA3_SETS, Ia3Spec

READ = {"feedforward_modules"}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "auto_mapping": (None,),
    "exclude_modules": (None,),
    "fan_in_fan_out": (False,),
    "init_ia3_weights": (True, False),
}


class Ia3:
    """Ones to begin with, so the adapter begins as nothing. A key or value projection has its output scaled, a
    feed-forward part's last projection its input: the vector stands where the activation is."""

    kind = "ia3"

    def parts(self, spec: Ia3Spec, found: Anatomy) -> tuple[Part, ...]:
        """One vector per targeted map: `out_scale` [out], or `in_scale` [in] where it is a feed-forward's last."""
        sites, inner = _sites(spec, found)
        return tuple(_part(site, "in_scale" if site.name in inner else "out_scale") for site in sites)

    def config(self, spec: Ia3Spec, found: Anatomy) -> dict[str, Any]:
        """What `peft.PeftModel.from_pretrained` reads."""
        sites, inner = _sites(spec, found)
        names = short_names(found, sites)
        forward = [name for name in names if any(_ends(site, name) for site in sites if site.name in inner)]
        if any(_ends(site, name) for name in forward for site in sites if site.name not in inner):
            names, forward = sorted(site.name for site in sites), sorted(inner)
        return {
            **peft_head("IA3", found),
            "target_modules": names,
            "feedforward_modules": forward,
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
        }

    def read_config(self, config: Mapping[str, Any], found: Anatomy) -> Ia3Spec:
        """Only keys known to be harmless at values known to be harmless are let through."""
        check_peft_config(config, found, "IA3", READ, NEUTRAL)
        fields = {key: names_in(config, f"{key}_modules") for key in ("target", "feedforward")}
        return spec_of(Ia3Spec, {"targets": fields["target"], "feedforward": fields["feedforward"]})


def _sites(spec: Ia3Spec, found: Anatomy) -> tuple[tuple[Site, ...], frozenset[str]]:
    """The targeted maps, and the names of those whose input is scaled."""
    last = frozenset(site.name for site in feedforward_outputs(found))
    if isinstance(spec.targets, str):
        keys = frozenset(site.name for site in found.linears if site.attention and last_name(site) in KEYS | VALUES)
        chosen = dict(zip(IA3_SETS, (keys | last, keys, last), strict=True))[spec.targets]
        sites = tuple(site for site in found.linears if site.name in chosen)
        if not sites:
            raise AdapterError("method.targets", f"got '{spec.targets}'", "this model has none", module_names(found))
        return sites, last
    sites = targeted(found, spec.targets)
    if spec.feedforward is None:
        return sites, last & {site.name for site in sites}
    return sites, frozenset(site.name for site in sites if any(_ends(site, name) for name in spec.feedforward))


def _ends(site: Site, name: str) -> bool:
    return site.name.endswith(name)  # as PEFT matches feed-forward modules: with no regard to dots


def _part(site: Site, role: str) -> Part:
    inner = role == "in_scale"
    width = site.in_width if inner else site.width
    return Part(
        site,
        "lora",
        {role: (width,)},
        {role: Init("ones")},
        stored={role: ("ia3_l", (1, width) if inner else (width, 1))},
    )
