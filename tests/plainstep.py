"""A plain StepContext for tests of rooms: local directories, real hashes, durable progress, nothing shared."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petl_ray.artifact import Artifact, FileEntry
from petl_ray.errors import CorruptionError, RunCancelled
from petl_ray.fingerprint import sha256_file
from petl_ray.verb import Progress, Resources


@dataclass
class PlainStep:
    """Keeps objects by sha256 below `root/objects`; several steps may share one root."""

    root: Path
    name: str = "0" * 64
    resources: Resources = field(default_factory=Resources)
    services: Mapping[str, str] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cancelled: bool = False
    memories: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    _out: Path | None = None

    @property
    def out(self) -> Path:
        if self._out is None:
            (self.root / "out").mkdir(parents=True, exist_ok=True)
            self._out = Path(tempfile.mkdtemp(dir=self.root / "out"))
        return self._out

    def fetch(self, artifact: Artifact) -> Path:
        directory = Path(tempfile.mkdtemp(prefix="fetched-", dir=self.root))
        for entry in (*artifact.files, *artifact.traces):
            target = directory / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / "objects" / entry.sha256, target)
            if sha256_file(target) != entry.sha256:
                raise CorruptionError(entry.path, "bytes differ from the digest")
        return directory

    def keep(self, *paths: str) -> tuple[FileEntry, ...]:
        objects = self.root / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        kept = []
        for path in paths:
            source = self.out / path
            digest = sha256_file(source)
            shutil.copyfile(source, objects / digest)
            kept.append(FileEntry(path=path, sha256=digest, size_bytes=source.stat().st_size))
        return tuple(kept)

    def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
        home = self.root / "progress" / self.name
        home.mkdir(parents=True, exist_ok=True)
        target = home / f"{len(list(home.iterdir())):06d}"
        shutil.copytree(directory, target)
        (target / "note.json").write_text(json.dumps(dict(note)))

    def load_progress(self) -> Progress | None:
        home = self.root / "progress" / self.name
        if not home.is_dir() or not (saved := sorted(home.iterdir())):
            return None
        return Progress(saved[-1], json.loads((saved[-1] / "note.json").read_text()))

    def record(self, key: str, value: Mapping[str, Any]) -> None:
        facts = self.recorded()
        facts.setdefault(key, dict(value))
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / f"facts-{self.name}.json").write_text(json.dumps(facts))

    def recorded(self) -> dict[str, Mapping[str, Any]]:
        path = self.root / f"facts-{self.name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def remembered(self, what: str) -> list[Mapping[str, Any]]:
        return self.memories.get(what, [])

    def report(self, event: str, /, **facts: Any) -> None:
        self.events.append((event, facts))

    def check(self) -> None:
        if self.cancelled:
            raise RunCancelled(self.name)
