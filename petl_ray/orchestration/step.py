"""What a verb is handed while it holds the claim of its step: see `petl_ray.verb.StepContext` for every promise."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from petl_ray.artifact import Artifact, FileEntry
from petl_ray.errors import PermanentError
from petl_ray.orchestration import journal, progress, records
from petl_ray.orchestration.claims import Claim, claim_lost, insert_if_absent
from petl_ray.orchestration.faults import fault
from petl_ray.orchestration.home import Opened
from petl_ray.orchestration.journal import Entry
from petl_ray.orchestration.pulse import Pulse
from petl_ray.orchestration.verbs import VERBS
from petl_ray.store.tables import facts
from petl_ray.verb import Progress, Resources


class ClaimedStep:
    """The StepContext of one attempt. What it makes durable is fenced: a stale owner cannot write over the next."""

    def __init__(
        self, opened: Opened, claim: Claim, entry: Entry, resources: Resources, pulse: Pulse, plan_digest: str
    ) -> None:
        self._opened, self.claim, self.entry, self._resources, self._pulse = opened, claim, entry, resources, pulse
        self._plan_digest = plan_digest
        self._scratch: Path | None = None
        self._saves: progress.Saves | None = None
        self._uses_progress = False

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def out(self) -> Path:
        return self._room("out")

    @property
    def resources(self) -> Resources:
        return self._resources

    @property
    def services(self) -> Mapping[str, str]:
        asked = {"plan": self._plan_digest, "verbs": ", ".join(f"{verb.name} {verb.version}" for verb in VERBS)}
        return {**self._opened.home.services(self.entry.run_id), **asked}

    def fetch(self, artifact: Artifact) -> Path:
        return records.fetch(self._opened.store, artifact, self._opened.home.cache)

    def keep(self, *paths: str) -> tuple[FileEntry, ...]:
        return tuple(self._keep(path) for path in paths)

    def _keep(self, path: str) -> FileEntry:
        source = self.out / path
        if not source.resolve().is_relative_to(self.out.resolve()) or not source.is_file():
            raise PermanentError(
                f"{self.entry.label}: file {path}", "not below the step's directory", do="Write it to step.out first"
            )
        sha256, size_bytes = self._opened.store.put(source)
        return FileEntry(path=path, sha256=sha256, size_bytes=size_bytes)

    def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
        self._check_fence()
        self._uses_progress = True
        if self._saves is None:
            self._saves = progress.Saves(self._opened.store, self.name, self.entry.verb, self.claim.fence)
        self._saves.save(directory, note)

    def load_progress(self) -> Progress | None:
        self._uses_progress = True
        return progress.newest(self._opened.store, self.name, self._room("progress"))

    def record(self, key: str, value: Mapping[str, Any]) -> None:
        fault(self.entry.verb, "in-rung")
        with self._opened.database.begin() as conn:
            self.claim.check(conn)
            row = {"step": self.name, "key": key, "value": dict(value), "fence": self.claim.fence}
            insert_if_absent(conn, facts, {**row, "recorded_at": self._opened.database.now(conn)})
        fault(self.entry.verb, "after-rung")

    def recorded(self) -> dict[str, Mapping[str, Any]]:
        query = select(facts.c.key, facts.c.value).where(facts.c.step == self.name)
        with self._opened.database.read() as conn:
            rows = conn.execute(query.order_by(facts.c.recorded_at, facts.c.key)).all()
        return {row.key: row.value for row in rows}

    def remembered(self, what: str) -> list[Mapping[str, Any]]:
        with self._opened.database.read() as conn:
            return journal.told_about(conn, what)

    def report(self, event: str, /, **facts: Any) -> None:
        self._pulse.outbox.post(self.entry.run_id, event, self.name, **{"label": self.entry.label, **facts})

    def check(self) -> None:
        if self.claim.lost.is_set():
            raise claim_lost(self.claim.name)
        self._pulse.check()

    def close(self, *, done: bool) -> None:
        """Remove what was only for this attempt; with `done`, its checkpoints too."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        if done and self._uses_progress:
            progress.clear(self._opened.store, self.name, self.claim.fence)

    def _check_fence(self) -> None:
        with self._opened.database.read() as conn:
            self.claim.check(conn)

    def _room(self, name: str) -> Path:
        if self._scratch is None:
            _remove_scratch(self._opened, self.name)  # of attempts that were killed: the claim is ours now
            work = self._opened.home.scratch / "work"
            work.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=f"{self.name[:12]}-", dir=work))
        (self._scratch / name).mkdir(exist_ok=True)
        return self._scratch / name


def sweep(place: Opened, name: str) -> None:
    """Remove what attempts of a step that is done left behind when they were killed: scratch of here, checkpoints."""
    _remove_scratch(place, name)
    progress.clear(place.store, name)


def _remove_scratch(place: Opened, name: str) -> None:
    for left in (place.home.scratch / "work").glob(f"{name[:12]}-*"):
        shutil.rmtree(left, ignore_errors=True)
