"""Checkpoints of a step in the store: files first, manifest last, one place per fence: nobody overwrites another.

They lie at `steps/<name>/progress/<fence>/<number>/`; a new claimant goes on from the newest that verifies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petl_ray.errors import PermanentError
from petl_ray.orchestration.faults import fault
from petl_ray.store import Store
from petl_ray.verb import Progress

_KEPT = 2  # the newest, and one to fall back on


def save(store: Store, name: str, verb: str, fence: int, number: int, directory: Path, note: Mapping[str, Any]) -> None:
    """Make the files of `directory` and `note` durable as checkpoint `number` under `fence`; returns when it is."""
    home = f"steps/{name}/progress/{fence:012d}/{number:06d}"
    sums = {}
    for path in sorted(one for one in directory.rglob("*") if one.is_file()):
        data = path.read_bytes()
        relative = path.relative_to(directory).as_posix()
        store.write(f"{home}/files/{relative}", data)
        sums[relative] = hashlib.sha256(data).hexdigest()
    fault(verb, "mid-progress")
    manifest = json.dumps({"files": sums, "note": dict(note)}, sort_keys=True, allow_nan=False)
    store.write(f"{home}/manifest.json", manifest.encode())
    fault(verb, "after-progress")


def newest(store: Store, name: str, target: Path) -> Progress | None:
    """The newest checkpoint that verifies, written below `target`; None if there is none."""
    target.mkdir(parents=True, exist_ok=True)
    for home in reversed(_homes(store, name)):
        with contextlib.suppress(ValueError, KeyError, TypeError, PermanentError):
            manifest = json.loads(store.read(f"{home}/manifest.json") or b"")
            directory = Path(tempfile.mkdtemp(dir=target))
            for relative, sha256 in manifest["files"].items():
                data = store.read(f"{home}/files/{relative}") or b""
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise ValueError(relative)
                (directory / relative).parent.mkdir(parents=True, exist_ok=True)
                (directory / relative).write_bytes(data)
            return Progress(directory, manifest["note"])
    return None


def last_number(store: Store, name: str, fence: int) -> int:
    """The highest number in use under `fence`; 0 if none is. After a power loss a fence may come round again."""
    keys = store.list(f"steps/{name}/progress/{fence:012d}/")
    return max((int(key.split("/")[4]) for key in keys), default=0)


def prune(store: Store, name: str, fence: int) -> None:
    """Delete all checkpoints but the newest two of owners up to `fence`; a manifest goes before its files."""
    mine = [home for home in _homes(store, name) if _fence_of(home) <= fence]
    for home in mine[:-_KEPT]:
        for key in [f"{home}/manifest.json", *store.list(f"{home}/files/")]:
            store.delete(key)


def clear(store: Store, name: str, fence: int | None = None) -> None:
    """Delete every checkpoint of a step that is done, torn ones too; with `fence` only those of owners up to it."""
    keys = [key for key in store.list(f"steps/{name}/progress/") if fence is None or _fence_of(key) <= fence]
    for key in sorted(keys, key=lambda one: not one.endswith("/manifest.json")):
        store.delete(key)


def _fence_of(key: str) -> int:
    return int(key.split("/")[3])


def _homes(store: Store, name: str) -> list[str]:
    """The checkpoints that have a manifest, oldest first."""
    keys = store.list(f"steps/{name}/progress/")
    return sorted(key.rpartition("/")[0] for key in keys if key.endswith("/manifest.json") and key.count("/") == 5)
