"""Which code a figure is about."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import petl_ray
from petl_ray.fingerprint import sha256_of


@cache
def sources() -> str:
    """A digest of all of the project's own sources: what ours came to stands for these alone."""
    return digest_of(Path(petl_ray.__file__).parent)


def digest_of(folder: Path) -> str:
    """A digest of every Python file below `folder`, its name included."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    return sha256_of({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()})[:16]
