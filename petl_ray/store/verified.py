"""Bytes that are checked while they are written, and appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from petl_ray.errors import CorruptionError
from petl_ray.store.failures import local_failures

CHUNK_BYTES = 1 << 20


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of `stream` in pieces of a megabyte."""
    while piece := stream.read(CHUNK_BYTES):
        yield piece


def write_verified(pieces: Iterable[bytes], sha256: str, target: Path) -> None:
    """Write `pieces` beside `target` and move them there if their sha256 is the one asked for; else CorruptionError."""
    digest = hashlib.sha256()
    with local_failures("file", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".getting-", dir=target.parent)
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            for piece in pieces:
                digest.update(piece)
                with local_failures("file", target):
                    stream.write(piece)
            with local_failures("file", target):
                stream.flush()
        if digest.hexdigest() != sha256:
            raise CorruptionError(
                f"object {sha256[:12]}…",
                f"its bytes hash to {digest.hexdigest()[:12]}…",
                "it was torn or changed in the store",
                "Remove it from the store and run again; what made it will be made anew",
                sha256=sha256,
            )
        with local_failures("file", target):
            aside.chmod(0o644)
            aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
