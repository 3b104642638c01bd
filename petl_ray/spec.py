"""What may be asked: the closed, frozen base of every Spec, and references pinned to their bytes.

A Spec bears identity: two equal Specs are one question. What must not bear identity is marked with `NotIdentity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


class NotIdentity:
    """Marks a field that says where or how fast, never what: it is left out of fingerprints.

    Use as `Annotated[int, NOT_IDENTITY]`.
    """


NOT_IDENTITY = NotIdentity()


class OmitDefault:
    """Marks a field that came after outcomes had been kept: at its default it is left out of fingerprints, so that old
    questions keep their names. The default must mean, for ever, what was done before the field was there.

    Use as `Annotated[int, OMIT_DEFAULT] = Field(default=...)`.
    """


OMIT_DEFAULT = OmitDefault()


class Spec(BaseModel):
    """Base of every Spec: frozen, closed (unknown keys are refused), defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that bear identity, by name; values untouched."""
        return {
            name: getattr(self, name) for name, field in type(self).model_fields.items() if self._bears(name, field)
        }

    def _bears(self, name: str, field: FieldInfo) -> bool:
        if any(isinstance(mark, NotIdentity) for mark in field.metadata):
            return False
        late = any(isinstance(mark, OmitDefault) for mark in field.metadata)
        return not (late and getattr(self, name) == field.get_default(call_default_factory=True))


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

    A path that sets another `kind` begins at that kind's own defaults: it has other fields. The order of `overrides`
    means nothing. Raises pydantic.ValidationError for a path that leads nowhere and for a value that is refused.
    """
    document = spec.model_dump(mode="json")
    for path in sorted(overrides, key=_kinds_first):
        *parents, last = path.split(".")
        here = document
        for part in parents:
            inner = here.get(part)
            here[part] = here = dict(inner) if isinstance(inner, dict) else {}
        if last == "kind" and here.get("kind") != overrides[path]:
            here.clear()
        here[last] = overrides[path]
    return type(spec).model_validate(document)


def _kinds_first(path: str) -> tuple[int, bool, str]:
    """Outer mappings before what lies in them, and a mapping's kind before its other fields."""
    parts = path.split(".")
    return len(parts), parts[-1] != "kind", path
