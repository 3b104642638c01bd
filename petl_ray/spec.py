"""What may be asked: the closed, frozen base of every Spec, and references pinned to their bytes.

A Spec bears identity: two equal Specs are one question. What must not bear identity is marked with `NotIdentity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from petl_ray.errors import PlanError

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


class NotIdentity:
    """Marks a field that says where or how fast, never what: it is left out of fingerprints.

    Use as `Annotated[int, NOT_IDENTITY]`.
    """


NOT_IDENTITY = NotIdentity()


class Spec(BaseModel):
    """Base of every Spec: frozen, closed (unknown keys are refused), defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that bear identity, by name; values untouched."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if not any(isinstance(mark, NotIdentity) for mark in field.metadata)
        }


class Pinned(Spec):
    """An outside reference together with the digest of what it stood for when the plan was locked.

    `uri` says where to read it (a path, `s3://…`, `package:NAME`, `hub:ID@REVISION`); only `digest` bears identity,
    so a moved file or a touched mtime changes nothing and an edited row does.
    """

    uri: Annotated[str, NOT_IDENTITY]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the content, hex")


_S = TypeVar("_S", bound=Spec)


def with_overrides(spec: _S, overrides: Mapping[str, Any]) -> _S:
    """`spec` with dotted paths set to new values, validated whole: `{"method.rank": 4, "learning_rate": 1e-3}`.

    Raises PlanError for a path that the spec does not have, pydantic.ValidationError for a value it refuses.
    """
    document = spec.model_dump(mode="json")
    for path, value in overrides.items():
        here: Any = document
        *parents, last = path.split(".")
        for part in parents:
            here = here.get(part) if isinstance(here, dict) else None
        if not isinstance(here, dict) or last not in here:
            known = ", ".join(sorted(here)) if isinstance(here, dict) else "nothing below it"
            raise PlanError(path, "no such field", f"known here: {known}", "Check the dotted path")
        here[last] = value
    return type(spec).model_validate(document)
