"""The configuration file of methods that PEFT does not have: their spec as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from petl_ray.errors import AdapterError
from petl_ray.spec import Spec

S = TypeVar("S", bound=Spec)


def plain_config(spec: Spec) -> dict[str, Any]:
    """`adapter_config.json` of a method without an outside format."""
    return spec.model_dump(mode="json")


def read_plain_config(kind: type[S], config: Mapping[str, Any]) -> S:
    """The spec in `config`; raises AdapterError for a wrong key or value."""
    try:
        return kind.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise AdapterError(
            f"adapter_config.json: {key}", f"got {str(first['input'])[:80]}", first["msg"], "Refuse this adapter"
        ) from None
