"""PEFT's `adapter_config.json`, read with suspicion: only keys known to be harmless at values known to be harmless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from petl_ray.errors import AdapterError
from petl_ray.methods.sites import Anatomy
from petl_ray.spec import Spec

TASK_TYPES = {True: "SEQ_CLS", False: "CAUSAL_LM"}
HEAD_NAMES = {"classifier", "score"}  # PEFT lists both by itself, whichever the model has
ALWAYS_READ = {"peft_type", "task_type", "target_modules", "modules_to_save"}
FREE = {"peft_version", "base_model_name_or_path", "revision", "inference_mode"}  # any scalar: nothing depends on it

S = TypeVar("S", bound=Spec)


def peft_head(peft_type: str, found: Anatomy) -> dict[str, Any]:
    """What the configuration of every method of PEFT begins with."""
    return {
        "peft_type": peft_type,
        "task_type": TASK_TYPES[bool(found.head_modules)],
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": list(found.head_modules) or None,
    }


def check_peft_config(
    config: Mapping[str, Any],
    found: Anatomy,
    peft_type: str,
    read: set[str],
    neutral: Mapping[str, tuple[Any, ...]],
) -> None:
    """Refuse what is not known: keys beside `read` and `neutral` (allowed values), another method, task or head."""
    if config.get("peft_type") != peft_type:
        raise refused("peft_type", config.get("peft_type"), f"only {peft_type} is read")
    for key, value in config.items():
        if key in neutral and not any(value == good and type(value) is type(good) for good in neutral[key]):
            raise refused(key, value, "only its neutral value is allowed here")
        if key in FREE and not isinstance(value, str | bool | None):
            raise refused(key, value, "a plain text or nothing is expected")
        if key not in read and key not in ALWAYS_READ and key not in FREE and key not in neutral:
            raise refused(key, value, "no such key is known")
    if config.get("task_type") != TASK_TYPES[bool(found.head_modules)]:
        raise refused("task_type", config.get("task_type"), "the base was loaded for another task type")
    saved = set(config.get("modules_to_save") or []) - (HEAD_NAMES if found.head_modules else set())
    if saved != set(found.head_modules) - HEAD_NAMES:
        raise refused("modules_to_save", config.get("modules_to_save"), "only the head itself may be replaced")


def names_in(config: Mapping[str, Any], key: str) -> list[str]:
    """A list of module names; patterns are not read."""
    value = config.get(key)
    if not isinstance(value, list):
        raise refused(key, value, "a list of module names is expected")
    return value


def spec_of(kind: type[S], fields: Mapping[str, Any]) -> S:
    """The spec that the fields stand for; raises AdapterError in the spec's own words."""
    try:
        return kind.model_validate(dict(fields), strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise refused(".".join(map(str, first["loc"])), first["input"], first["msg"]) from None


def refused(key: str, value: Any, why: str) -> AdapterError:
    """The error of a key at a value that is not let through."""
    return AdapterError(f"adapter_config.json: {key}", f"got {str(value)[:80]}", why, "Refuse this adapter")
