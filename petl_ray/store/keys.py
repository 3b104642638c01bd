"""Names inside a store: relative, POSIX, without tricks; where an object lies by its sha256."""

from __future__ import annotations

import re

from petl_ray.errors import PermanentError

_PART = re.compile(r"[A-Za-z0-9_@=+,:%-][A-Za-z0-9._@=+,:%-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_PART = 240  # most file systems stop at 255 bytes; temporary files need a few


def checked_key(key: str) -> str:
    """`key` itself, if its parts are plain names that do not begin with a dot; else PermanentError."""
    parts = key.split("/")
    if len(key) <= 900 and all(len(part) <= _LONGEST_PART and _PART.fullmatch(part) for part in parts):
        return key
    raise PermanentError(
        "store key",
        f"got {key!r}",
        "a key is made of plain names between slashes, none empty or beginning with a dot",
        "Use letters, digits and . _ - @ = + , : %",
    )


def object_key(sha256: str) -> str:
    """The key under which the object with that sha256 (64 hex digits) lies: `objects/aa/<sha256>`."""
    if not _SHA256.fullmatch(sha256):
        raise PermanentError("store object", f"got {sha256!r}", "an object is named by 64 hex digits of sha256")
    return f"objects/{sha256[:2]}/{sha256}"
