"""A local, read-only directory with the files of an artifact: verified, filled once, shared by processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from petl_ray.artifact import FileEntry
from petl_ray.fingerprint import sha256_file, sha256_of
from petl_ray.store.failures import local_failures
from petl_ray.store.objects import Store


def fetch_files(store: Store, entries: Iterable[FileEntry], cache: Path) -> Path:
    """A directory below `cache` that holds exactly `entries`, each file verified against its sha256.

    The directory is keyed by paths and digests: equal entries, equal directory. It is filled aside and moved into place
    at once, so that many processes may ask for the same files; one that no longer verifies is replaced.
    Raises NotFoundError or CorruptionError for a broken store, and what every store raises.
    """
    wanted = {entry.path: entry for entry in entries}
    target = cache / sha256_of(sorted([entry.path, entry.sha256] for entry in wanted.values()))[:40]
    if _verifies(target, wanted):
        return target
    with local_failures("cache", cache):
        cache.mkdir(parents=True, exist_ok=True)
        filled = Path(tempfile.mkdtemp(prefix=".filling-", dir=cache))
    try:
        for path, entry in wanted.items():
            with local_failures("cache", filled):
                (filled / path).parent.mkdir(parents=True, exist_ok=True)
            store.get(entry.sha256, filled / path)
        with local_failures("cache", filled):
            _seal(filled)
            _move_into_place(filled, target, wanted)
    finally:
        _remove(filled)
    return target


def _verifies(directory: Path, wanted: dict[str, FileEntry]) -> bool:
    """Whether every wanted file lies there with its bytes; hashing costs about 1 ms a megabyte."""
    try:
        return directory.is_dir() and all(
            (directory / path).stat().st_size == entry.size_bytes and sha256_file(directory / path) == entry.sha256
            for path, entry in wanted.items()
        )
    except OSError:
        return False


def _seal(directory: Path) -> None:
    for root, _, names in os.walk(directory, topdown=False):
        for name in names:
            (Path(root) / name).chmod(0o444)
        Path(root).chmod(0o555)


def _move_into_place(filled: Path, target: Path, wanted: dict[str, FileEntry]) -> None:
    """Move `filled` to `target`; a target that another process filled meanwhile stands, a broken one gives way."""
    while True:
        with contextlib.suppress(OSError):  # a directory with files in it is never replaced by a rename
            filled.rename(target)
        if _verifies(target, wanted):
            return
        if not target.exists():
            filled.rename(target)  # raises the reason
            continue
        aside = Path(tempfile.mkdtemp(prefix=".broken-", dir=target.parent))
        with contextlib.suppress(FileNotFoundError):  # somebody else moved it away
            target.rename(aside / "was")
        _remove(aside)


def _remove(directory: Path) -> None:
    """Delete a sealed or half-filled directory of ours; what cannot be deleted stays as an unused hidden directory."""
    for root, _, _ in os.walk(directory):
        with contextlib.suppress(OSError):
            Path(root).chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)
