"""What a search remembers between attempts: overrides, costs and rungs as records, unfinished adapters as progress.

The order of writing is the promise: first the checkpoint of a rung is made durable (its facts ride in the note), then
the rung is recorded, then anybody decides on it. So a recorded rung is never trained again, and what can continue after
it is always there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from petl_ray.tuning.sampler import Overrides
from petl_ray.tuning.scratch import Scratch
from petl_ray.verb import Progress, StepContext

Files = dict[str, bytes]


class Copy(NamedTuple):
    """Trial `number` goes on after `rung` from what `donor` was there."""

    number: int
    donor: int
    rung: int


class Ledger:
    """The memory of one search below its step. `close` removes the local copy of live checkpoints."""

    def __init__(self, step: StepContext) -> None:
        self._step = step
        self._facts: dict[str, Mapping[str, Any]] = dict(step.recorded())
        self._live: dict[str, dict[str, Any]] = {}
        self.replayed = sum("/" in key and not key.endswith("/cost") for key in self._facts)
        self._scratch = Scratch("search")
        self._directory = self._scratch.path
        try:
            self._go_on(step.load_progress())
        except BaseException:
            self.close()
            raise

    def overrides(self, number: int) -> Overrides | None:
        """The overrides recorded for a trial."""
        facts = self._facts.get(str(number))
        return None if facts is None else dict(facts["overrides"])

    def asked(self, number: int, overrides: Overrides) -> None:
        """Record what a trial is."""
        self._record(str(number), {"overrides": overrides})

    def cost(self, number: int) -> Mapping[str, Any] | None:
        """The cost recorded for a trial."""
        return self._facts.get(f"{number}/cost")

    def weighed(self, number: int, facts: Mapping[str, Any]) -> None:
        """Record what a trial would cost."""
        self._record(f"{number}/cost", facts)

    def rungs(self, number: int) -> dict[int, Mapping[str, Any]]:
        """The facts of every recorded rung of a trial, by the rung's index."""
        mine = ((key.split("/"), facts) for key, facts in self._facts.items() if key.startswith(f"{number}/"))
        return {int(parts[1]): facts for parts, facts in mine if parts[1] != "cost"}

    def recorded(self) -> tuple[int, int]:
        """How many rungs are recorded, and of how many trials."""
        rungs = [key for key in self._facts if "/" in key and not key.endswith("/cost")]
        return len(rungs), len({key.split("/")[0] for key in rungs})

    def checkpoint(self, number: int) -> tuple[int, Files] | None:
        """The rung that a trial's newest checkpoint stands at, and its files; None if it must begin at the start."""
        entry = self._live.get(str(number))
        if entry is None:
            return None
        home = self._directory / str(number)
        files = (path for path in sorted(home.rglob("*")) if path.is_file())
        return int(entry["rung"]), {path.relative_to(home).as_posix(): path.read_bytes() for path in files}

    def reached(self, number: int, rung: int, facts: Mapping[str, Any], files: Files | None) -> None:
        """Make a trial's checkpoint durable (None: nothing continues here), then record the rung."""
        if files is not None:
            self._save(str(number), {"rung": rung, "facts": dict(facts)}, files)
        self._record(f"{number}/{rung}", facts)
        if files is None:
            self.forget(number)

    def copied(self, copies: Sequence[Copy]) -> None:
        """Give trials the checkpoints of others, durably, before anybody trains on.

        A trial that has come further since, or has its copy from an earlier attempt, keeps what it has. Where the donor's
        checkpoint of that rung is gone, the trial begins at the start: its overrides hold all that the donor went through.
        """
        changed = False
        for copy in copies:
            mine, theirs = self._live.get(str(copy.number)), self._live.get(str(copy.donor))
            if mine and (mine["rung"] > copy.rung or (mine["rung"] == copy.rung and mine.get("from") == copy.donor)):
                continue
            self.forget(copy.number)
            if theirs and theirs["rung"] == copy.rung:
                shutil.copytree(self._directory / str(copy.donor), self._directory / str(copy.number))
                facts = dict(self._facts[f"{copy.number}/{copy.rung}"])
                self._live[str(copy.number)] = {"rung": copy.rung, "facts": facts, "from": copy.donor}
                changed = True
        if changed:
            self._step.save_progress(self._directory, {"trials": self._live})

    def forget(self, number: int) -> None:
        """A trial has ended: its checkpoint is left out of the next progress."""
        if self._live.pop(str(number), None) is not None:
            shutil.rmtree(self._directory / str(number), ignore_errors=True)

    def close(self) -> None:
        """Remove the local copies."""
        self._scratch.close()

    def _go_on(self, progress: Progress | None) -> None:
        """Take up the checkpoints of an earlier attempt, and the facts that rode with them."""
        if progress is None:
            return
        self._live = {number: dict(entry) for number, entry in progress.note["trials"].items()}
        for number, entry in self._live.items():
            shutil.copytree(progress.directory / number, self._directory / number)
            self._record(f"{number}/{entry['rung']}", entry["facts"])

    def _save(self, name: str, entry: dict[str, Any], files: Files) -> None:
        """Save the progress with a trial's new checkpoint; the one before stands until that is durable."""
        home, before = self._directory / name, self._live.get(name)
        with tempfile.TemporaryDirectory(dir=self._scratch.root) as aside:
            if before is not None:
                shutil.move(home, aside)
            try:
                write_files(home, files)
                self._live[name] = entry
                self._step.save_progress(self._directory, {"trials": self._live})
            except BaseException:
                shutil.rmtree(home, ignore_errors=True)
                self._live.pop(name, None)
                if before is not None:
                    shutil.move(Path(aside) / name, home)
                    self._live[name] = before
                raise

    def _record(self, key: str, value: Mapping[str, Any]) -> None:
        if key not in self._facts:
            self._step.record(key, value)
            self._facts[key] = dict(value)


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` by relative path below `directory`, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_files(directory: Path, without: tuple[str, ...] = ()) -> Files:
    """The bytes of every file below `directory` by relative path."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in without)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
