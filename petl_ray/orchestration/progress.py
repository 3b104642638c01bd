"""Checkpoints of a step in the store: files first, manifest last, one place per fence: nobody overwrites another.

They lie at `steps/<name>/progress/<fence>/<number>/`; a new claimant goes on from the newest that verifies. A file that
has not changed since the checkpoint before is not written again: the manifest says which checkpoint of its owner wrote
it. So a step that saves a hundred small things one after another writes each of them once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petl_ray.errors import PermanentError
from petl_ray.fingerprint import sha256_file
from petl_ray.orchestration.faults import fault
from petl_ray.store import Store
from petl_ray.verb import Progress

_KEPT = 2  # the newest, and one to fall back on
_SETTLED_NS = 10**9  # a file that was changed less than this ago may change again and keep its times


class Saves:
    """The checkpoints that one owner of a claim writes."""

    def __init__(self, store: Store, name: str, verb: str, fence: int) -> None:
        self._store, self._name, self._verb, self._fence = store, name, verb, fence
        self._number: int | None = None
        self._files: dict[str, dict[str, Any]] = {}  # of the newest, as its manifest names them
        self._settled: dict[str, tuple[tuple[int, ...], str]] = {}  # times and size of a file, and its sha256
        self._named: dict[str, set[str]] = {}  # the keys that manifests name, by checkpoint

    def save(self, directory: Path, note: Mapping[str, Any]) -> None:
        """Make the files of `directory` and `note` durable; returns when they are."""
        number = (_last_number(self._store, self._name, self._fence) if self._number is None else self._number) + 1
        self._number = number  # a number that was begun is not used again
        home = _home(self._name, self._fence, number)
        files = {}
        for path in sorted(one for one in directory.rglob("*") if one.is_file()):
            relative = path.relative_to(directory).as_posix()
            known = self._files.get(relative)
            if known is None or known["sha256"] != self._sha256(relative, path):
                data = path.read_bytes()
                self._store.write(f"{home}/files/{relative}", data)
                known = {"sha256": hashlib.sha256(data).hexdigest(), "number": number}
            files[relative] = known
        fault(self._verb, "mid-progress")
        manifest = json.dumps({"files": files, "note": dict(note)}, sort_keys=True, allow_nan=False)
        self._store.write(f"{home}/manifest.json", manifest.encode())
        fault(self._verb, "after-progress")
        self._files, self._named[home] = files, _keys(home, files)
        self._prune()

    def _sha256(self, relative: str, path: Path) -> str:
        """Of a file; not read again where nothing about it has changed since it was, long after its last change."""
        now, stat = time.time_ns(), path.stat()
        signature = stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        known = self._settled.get(relative)
        if known is not None and known[0] == signature:
            return known[1]
        sha256 = sha256_file(path)
        if now - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
            self._settled[relative] = signature, sha256
        return sha256

    def _prune(self) -> None:
        """Delete what the newest two checkpoints of owners up to this one do not need; a manifest before its files."""
        keys = [key for key in self._store.list(f"steps/{self._name}/progress/") if _fence_of(key) <= self._fence]
        kept = _homes(keys)[-_KEPT:]
        needed = {f"{home}/manifest.json" for home in kept}
        for home in kept:
            if home not in self._named:
                with contextlib.suppress(ValueError, KeyError, TypeError, PermanentError):
                    self._named[home] = _keys(home, _manifest(self._store, home)["files"])
            needed |= self._named.get(home, set())
        self._named = {home: self._named[home] for home in kept if home in self._named}
        _delete(self._store, [key for key in keys if key not in needed])


def newest(store: Store, name: str, target: Path) -> Progress | None:
    """The newest checkpoint that verifies, written below `target`; None if there is none."""
    target.mkdir(parents=True, exist_ok=True)
    for home in reversed(_homes(store.list(f"steps/{name}/progress/"))):
        with contextlib.suppress(ValueError, KeyError, TypeError, PermanentError):
            manifest = _manifest(store, home)
            directory = Path(tempfile.mkdtemp(dir=target))
            for relative, entry in manifest["files"].items():
                data = store.read(_key(home, relative, entry)) or b""
                if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                    raise ValueError(relative)
                (directory / relative).parent.mkdir(parents=True, exist_ok=True)
                (directory / relative).write_bytes(data)
            return Progress(directory, manifest["note"])
    return None


def clear(store: Store, name: str, fence: int | None = None) -> None:
    """Delete every checkpoint of a step that is done, torn ones too; with `fence` only those of owners up to it."""
    _delete(store, [key for key in store.list(f"steps/{name}/progress/") if fence is None or _fence_of(key) <= fence])


def _last_number(store: Store, name: str, fence: int) -> int:
    """The highest number in use under `fence`; 0 if none is. After a power loss a fence may come round again."""
    keys = store.list(f"steps/{name}/progress/{fence:012d}/")
    return max((int(key.split("/")[4]) for key in keys), default=0)


def _home(name: str, fence: int, number: int) -> str:
    return f"steps/{name}/progress/{fence:012d}/{number:06d}"


def _key(home: str, relative: str, entry: Mapping[str, Any]) -> str:
    """Where the file that a manifest at `home` names lies."""
    return f"{home.rpartition('/')[0]}/{entry['number']:06d}/files/{relative}"


def _keys(home: str, files: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {_key(home, relative, entry) for relative, entry in files.items()}


def _manifest(store: Store, home: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(store.read(f"{home}/manifest.json") or b"")
    return manifest


def _delete(store: Store, keys: list[str]) -> None:
    for key in sorted(keys, key=lambda one: not one.endswith("/manifest.json")):
        store.delete(key)


def _fence_of(key: str) -> int:
    return int(key.split("/")[3])


def _homes(keys: list[str]) -> list[str]:
    """The checkpoints that have a manifest, oldest first."""
    return sorted(key.rpartition("/")[0] for key in keys if key.endswith("/manifest.json") and key.count("/") == 5)
