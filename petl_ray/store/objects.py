"""What every store can do, and the door that opens one by its URL."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from petl_ray.errors import PlanError


class Store(Protocol):
    """Content-addressed objects and records that are created at most once; safe for many processes at a time.

    All methods raise TemporaryError where the store is away or busy, CapacityError where it is full, and
    PermanentError where it refuses (no permission, no bucket, no credentials).
    """

    @property
    def url(self) -> str:
        """The URL that opens this store in any process."""

    def put(self, path: Path) -> tuple[str, int]:
        """Keep the bytes of a file under their sha256; returns (sha256 hex, size in bytes). Twice is once."""

    def put_bytes(self, data: bytes) -> str:
        """Keep `data` under its sha256 and return that (hex)."""

    def get(self, sha256: str, target: Path) -> None:
        """Write the object to `target`, verified on the way; `target` appears whole or not at all.

        Raises NotFoundError if there is none, CorruptionError if its bytes are not what the name says; both carry
        `sha256` in their `extra`.
        """

    def has(self, sha256: str, size_bytes: int) -> bool:
        """Whether an object of that sha256 is kept in full size; its bytes are not read."""

    def discard(self, sha256: str) -> None:
        """Let an object whose bytes are not what the name says count as absent, so that it is kept anew.

        Reads all of it; one that is right stays, as does one that somebody keeps anew meanwhile.
        """

    def create(self, key: str, data: bytes) -> bytes:
        """Create a record if nothing stands under `key`; returns the bytes that stand there afterwards.

        Exactly one of many creators wins; all of them are given the winner's bytes. Safe to repeat after an error.
        """

    def replace(self, key: str, old: bytes, new: bytes) -> bytes | None:
        """Put `new` under `key` if exactly `old` stands there; returns what stands afterwards, None for nothing.

        Of many that replace the same bytes one wins, and all of them are given the winner's. Safe to repeat after an
        error.
        """

    def read(self, key: str) -> bytes | None:
        """The bytes under `key`; None if there are none."""

    def write(self, key: str, data: bytes) -> None:
        """Put `data` under `key` whatever stands there; readers see the old bytes or the new, never a mixture."""

    def list(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove what stands under `key`, if anything."""


def open_store(url: str) -> Store:
    """The store at `file:///directory`, a plain path, or `s3://bucket/prefix`.

    For S3, endpoint, region and credentials come from the environment (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`,
    `AWS_REGION`, `AWS_ACCESS_KEY_ID`, …). Nothing is contacted or created yet.
    Raises PlanError for another kind of URL.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        from petl_ray.store.s3 import S3Store  # boto3 takes half a second to import

        return S3Store(parts.netloc, parts.path.strip("/"))
    from petl_ray.store.local import LocalStore

    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return LocalStore(Path(unquote(parts.path)))
    if not parts.scheme and url:
        return LocalStore(Path(url))
    raise PlanError(
        "store", f"got {url!r}", "a store is a directory or a bucket", "Use file:///dir or s3://bucket/prefix"
    )
