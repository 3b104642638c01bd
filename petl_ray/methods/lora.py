"""LoRA (Hu et al. 2021) in PEFT's file format: parts on the targeted linear maps, the config read with suspicion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from petl_ray.errors import AdapterError
from petl_ray.methods.parts import Init, Part, kaiming
from petl_ray.methods.sites import Anatomy, short_names, targeted
from petl_ray.methods.spec import LoraSpec

TASK_TYPES = {True: "SEQ_CLS", False: "CAUSAL_LM"}
HEAD_NAMES = {"classifier", "score"}  # PEFT lists both by itself, whichever the model has
READ = {"peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "modules_to_save"}
FREE = {"peft_version", "base_model_name_or_path", "revision", "inference_mode"}  # any scalar: nothing depends on it
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
    "layers_to_transform": (None,),
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
            for site in targeted(found, spec.targets)
        )

    def config(self, spec: LoraSpec, found: Anatomy) -> dict[str, Any]:
        """What `peft.PeftModel.from_pretrained` reads."""
        return {
            "peft_type": "LORA",
            "task_type": TASK_TYPES[bool(found.head_modules)],
            "base_model_name_or_path": None,
            "inference_mode": True,
            "r": spec.rank,
            "lora_alpha": spec.alpha,
            "lora_dropout": spec.dropout,
            "use_rslora": spec.rslora,
            "target_modules": short_names(found, targeted(found, spec.targets)),
            "modules_to_save": list(found.head_modules) or None,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }

    def read_config(self, config: Mapping[str, Any], found: Anatomy) -> LoraSpec:
        """Only keys known to be harmless at values known to be harmless are let through."""
        for key, value in config.items():
            if key in NEUTRAL and not any(value == good and type(value) is type(good) for good in NEUTRAL[key]):
                raise _refused(key, value, "only its neutral value is allowed here")
            if key in FREE and not isinstance(value, str | bool | None):
                raise _refused(key, value, "a plain text or nothing is expected")
            if key not in READ and key not in FREE and key not in NEUTRAL:
                raise _refused(key, value, "no such key is known")
        if config.get("peft_type") != "LORA":
            raise _refused("peft_type", config.get("peft_type"), "only LORA is read")
        if config.get("task_type") != TASK_TYPES[bool(found.head_modules)]:
            raise _refused("task_type", config.get("task_type"), "the base was loaded for another task type")
        saved = set(config.get("modules_to_save") or []) - (HEAD_NAMES if found.head_modules else set())
        if saved != set(found.head_modules) - HEAD_NAMES:
            raise _refused("modules_to_save", config.get("modules_to_save"), "only the head itself may be replaced")
        return _spec(config)


def _spec(config: Mapping[str, Any]) -> LoraSpec:
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        raise _refused("target_modules", targets, "a list of module names is expected")
    try:
        return LoraSpec.model_validate(
            {
                "rank": config.get("r"),
                "alpha": config.get("lora_alpha"),
                "dropout": config.get("lora_dropout", 0.0),
                "rslora": config.get("use_rslora", False),
                "targets": targets,
            },
            strict=False,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise _refused(".".join(map(str, first["loc"])), first["input"], first["msg"]) from None


def _refused(key: str, value: Any, why: str) -> AdapterError:
    return AdapterError(f"adapter_config.json: {key}", f"got {str(value)[:80]}", why, "Refuse this adapter")
