"""LoRA (Hu et al. 2021) in PEFT's file format: parts on the targeted linear maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petl_ray.methods.parts import Init, Part, kaiming
from petl_ray.methods.peft_format import check_peft_config, names_in, peft_head, refused, spec_of
from petl_ray.methods.sites import Anatomy, Site, in_layers, short_names, targeted
from petl_ray.methods.spec import LoraSpec

READ = {"r", "lora_alpha", "lora_dropout", "use_rslora", "layers_to_transform"}
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what PEFT also writes, allowed only where it changes nothing
    "alora_invocation_tokens": (None,),
    "alpha_pattern": ({},),
    "arrow_config": (None,),
    "auto_mapping": (None,),
    "bias": ("none",),
    "corda_config": (None,),
    "ensure_weight_tying": (False,),
    "eva_config": (None,),
    "exclude_modules": (None,),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True, False),
    "kasa_config": (None,),
    "layer_replication": (None,),
    "layers_pattern": (None,),
    "loftq_config": ({}, None),
    "lora_bias": (False,),
    "lora_ga_config": (None,),
    "megatron_config": (None,),
    "megatron_core": ("megatron.core", None),
    "monteclora_config": (None,),
    "qalora_group_size": (16,),
    "rank_pattern": ({},),
    "target_parameters": (None,),
    "trainable_token_indices": (None,),
    "use_bdlora": (None, False),
    "use_dora": (False,),
    "use_qalora": (False,),
    "velora_config": (None,),
}


class Lora:
    """y + scale · B A x, with dropout on x while training; B begins at zero, so the adapter begins as nothing."""

    kind = "lora"

    def parts(self, spec: LoraSpec, found: Anatomy) -> tuple[Part, ...]:
        """One part per targeted map: A [rank, in], B [out, rank]."""
        return tuple(
            Part(
                site,
                "lora",
                {"lora_A.weight": (spec.rank, site.in_width), "lora_B.weight": (site.width, spec.rank)},
                {"lora_A.weight": kaiming(site.in_width), "lora_B.weight": Init("zeros")},
                scale=spec.scale,
                dropout=spec.dropout,
            )
            for site in _sites(spec, found)
        )

    def config(self, spec: LoraSpec, found: Anatomy) -> dict[str, Any]:
        """What `peft.PeftModel.from_pretrained` reads. Names in full are read without regard to layers, so the layers
        are in them; short ones are narrowed by `layers_to_transform`."""
        names = short_names(found, targeted(found, spec.targets))
        if any("." in name for name in names):
            names = sorted(site.name for site in _sites(spec, found))
        written = {
            **peft_head("LORA", found),
            "r": spec.rank,
            "lora_alpha": spec.alpha,
            "lora_dropout": spec.dropout,
            "use_rslora": spec.rslora,
            "target_modules": names,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }
        return written if spec.layers is None else {**written, "layers_to_transform": list(spec.layers)}

    def read_config(self, config: Mapping[str, Any], found: Anatomy) -> LoraSpec:
        """Only keys known to be harmless at values known to be harmless are let through."""
        check_peft_config(config, found, "LORA", READ, NEUTRAL)
        layers = config.get("layers_to_transform")
        if isinstance(layers, int) and not isinstance(layers, bool):
            layers = [layers]
        fields = {
            "rank": config.get("r"),
            "alpha": config.get("lora_alpha"),
            "dropout": config.get("lora_dropout", 0.0),
            "rslora": config.get("use_rslora", False),
            "targets": names_in(config, "target_modules"),
            "layers": layers or None,  # to PEFT an empty list is every layer
        }
        spec = spec_of(LoraSpec, fields)
        sites = {site.name for site in _sites(spec, found)}
        if outside := [site.name for site in found.sites if site.name in spec.targets and site.name not in sites]:
            raise refused("target_modules", outside[0], "it lies outside layers_to_transform, which PEFT would ignore")
        return spec


def _sites(spec: LoraSpec, found: Anatomy) -> tuple[Site, ...]:
    sites = targeted(found, spec.targets)
    return sites if spec.layers is None else in_layers(found, sites, spec.layers)
