"""What went wrong, in one family: foreign exceptions as errors of ours, and errors as JSON for the journal."""

from __future__ import annotations

import errno
from typing import Any

from petl_ray import errors
from petl_ray.errors import CapacityError, PermanentError, PetlRayError, TemporaryError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SQLITE_FULL = "database or disk is full"  # SQLite's word for it, however many libraries have wrapped it


def as_ours(error: BaseException, label: str) -> PetlRayError:
    """`error` as one of our family: full disk and memory, lost connections, else a step that fails for good."""
    if isinstance(error, PetlRayError):
        return error
    found = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    if (isinstance(error, OSError) and error.errno in _FULL) or _SQLITE_FULL in found:
        return CapacityError(label, found, "the disk is full", "Free space, then run it again")
    if isinstance(error, MemoryError):
        return CapacityError(label, found, "the memory is full", "Give the step fewer slots or a bigger machine")
    if isinstance(error, ConnectionError | TimeoutError):
        return TemporaryError(label, found, "something it needs does not answer")
    return PermanentError(label, found, "the step failed in a way it did not foresee", "See `petl-ray runs logs`")


def to_json(error: PetlRayError) -> dict[str, Any]:
    """An error as the journal keeps it."""
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "found": error.found,
        "why": error.why,
        "do": error.do,
        "message": str(error),
    }


def from_json(value: dict[str, Any]) -> PetlRayError:
    """The error that the journal kept; an unknown kind becomes a PermanentError."""
    kind = getattr(errors, value.get("kind", ""), PermanentError)
    if not (isinstance(kind, type) and issubclass(kind, PetlRayError)):
        kind = PermanentError
    return kind(value.get("what", ""), value.get("found", ""), value.get("why", ""), value.get("do", ""))
