"""What may be asked: the closed, frozen base of every Spec, and references pinned to their bytes.

A Spec bears identity: two equal Specs are one question. What must not bear identity is marked with `NotIdentity`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

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
