"""A store in a local directory: written aside, synced, linked into place, directory synced.

Creating by `link` and not by O_EXCL means that a crash can leave a stray file below `.tmp`, never a torn record.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from petl_ray.errors import NotFoundError
from petl_ray.fingerprint import sha256_file
from petl_ray.store.failures import local_failures
from petl_ray.store.keys import checked_key, object_key
from petl_ray.store.verified import chunks, write_verified

_TRIES = 20  # to name a file in a directory that others remove when it is empty


class LocalStore:
    """See `petl_ray.store.objects.Store`. Made on first write; any number of processes of one machine may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def put(self, path: Path) -> tuple[str, int]:
        with local_failures("store", self.root), path.open("rb") as source:
            return self._put(chunks(source))

    def put_bytes(self, data: bytes) -> str:
        with local_failures("store", self.root):
            return self._put([data])[0]

    def get(self, sha256: str, target: Path) -> None:
        with local_failures("store", self.root):
            try:
                source = self._path(object_key(sha256)).open("rb")
            except FileNotFoundError:
                raise NotFoundError(
                    f"object {sha256[:12]}…", "not in the store", f"{self.url} has none", sha256=sha256
                ) from None
        with source:
            write_verified(chunks(source), sha256, target)

    def has(self, sha256: str, size_bytes: int) -> bool:
        with local_failures("store", self.root), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._path(object_key(sha256)).stat().st_size == size_bytes
        return False

    def discard(self, sha256: str) -> None:
        path, absent = self._path(object_key(sha256)), (FileNotFoundError, NotADirectoryError)
        with local_failures("store", self.root), contextlib.suppress(*absent), path.open("rb") as found:
            torn = hashlib.file_digest(found, "sha256").hexdigest() != sha256
            if torn and os.path.samestat(os.fstat(found.fileno()), path.stat()):  # still the one that was read
                path.unlink()
                self._sync(path.parent)

    def create(self, key: str, data: bytes) -> bytes:
        target = self._path(key)
        with local_failures("store", self.root), self._aside([data]) as (aside, _, _):
            self._sync(aside)
            with contextlib.suppress(FileExistsError):
                _into(target, lambda: os.link(aside, target))
            standing = target.read_bytes()
            self._sync(target.parent)  # the loser too: what is built on a record must not outlive it
            return standing

    def replace(self, key: str, old: bytes, new: bytes) -> bytes | None:
        """See Store. One at a time: nobody else ever moves a file onto a record that stands."""
        target = self._path(key)
        with local_failures("store", self.root), self._aside([new]) as (aside, _, _), self._replacing():
            standing = self.read(key)
            if standing != old:
                return standing
            self._sync(aside)
            aside.replace(target)
            self._sync(target.parent)
            return new

    def read(self, key: str) -> bytes | None:
        with local_failures("store", self.root), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._path(key).read_bytes()
        return None

    def write(self, key: str, data: bytes) -> None:
        target = self._path(key)
        with local_failures("store", self.root), self._aside([data]) as (aside, _, _):
            self._sync(aside)
            _into(target, lambda: aside.replace(target))
            self._sync(target.parent)

    def list(self, prefix: str) -> list[str]:
        start = self.root / prefix.rpartition("/")[0]
        found = []
        with local_failures("store", self.root):
            for directory, below, names in os.walk(start):
                below[:] = [name for name in below if not name.startswith(".")]
                found += [Path(directory, name).relative_to(self.root).as_posix() for name in names]
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        target = self._path(key)
        with local_failures("store", self.root), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
            self._sync(target.parent)
            with contextlib.suppress(OSError):  # up to one that is not empty: every listing visits what is left behind
                for directory in target.parents[: target.parents.index(self.root)]:
                    directory.rmdir()

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _put(self, pieces: Iterable[bytes]) -> tuple[str, int]:
        with self._aside(pieces) as (aside, sha256, size_bytes):
            target = self._path(object_key(sha256))
            if not (target.is_file() and sha256_file(target) == sha256):  # a torn object is healed
                self._sync(aside)
                _into(target, lambda: aside.replace(target))
            self._sync(target.parent)
            return sha256, size_bytes

    @contextlib.contextmanager
    def _aside(self, pieces: Iterable[bytes]) -> Iterator[tuple[Path, str, int]]:
        """The pieces in a file below `.tmp` (gone afterwards), their sha256 and size in bytes."""
        hidden = self.root / ".tmp"
        _make_directory(hidden)
        handle, name = tempfile.mkstemp(dir=hidden)
        digest, size_bytes = hashlib.sha256(), 0
        try:
            with os.fdopen(handle, "wb") as stream:
                for piece in pieces:
                    digest.update(piece)
                    size_bytes += stream.write(piece)
            Path(name).chmod(0o644)
            yield Path(name), digest.hexdigest(), size_bytes
        finally:
            Path(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _replacing(self) -> Iterator[None]:
        """Hold the lock of all processes that replace something here; it is given back also by one that dies."""
        with (self.root / ".tmp" / "replacing.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @staticmethod
    def _sync(path: Path) -> None:
        """Wait until the bytes of a file, or the names in a directory, are on the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _into(target: Path, act: Callable[[], object]) -> None:
    """`act`, which gives `target` its name, in a directory made for it: again where another process, which deleted the
    last file there, has just removed it."""
    for tries in range(_TRIES):
        try:
            _make_directory(target.parent)
            act()
            return
        except FileNotFoundError:
            if tries + 1 == _TRIES:
                raise


def _make_directory(path: Path) -> None:
    """Make `path` and what leads to it, each new name synced into its parent."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if path.is_file():
        raise NotADirectoryError(f"{path} is a file")
    LocalStore._sync(path.parent)
