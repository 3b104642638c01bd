"""What a room's verb is and what it is handed: the seam between orchestration and the rooms.

A verb is a plain function `verb(spec, *inputs, step=…) -> Artifact`, decorated with name and version. It is called by
its import name in whichever process does the work, so it needs no pickling and has a fingerprint.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, cast, runtime_checkable

from typing_extensions import TypeVar

from petl_ray.artifact import Artifact, FileEntry
from petl_ray.errors import PetlRayError
from petl_ray.spec import Spec


@dataclass(frozen=True)
class Resources:
    """What a placement gives to one step: whole cores, GPUs, worker processes, trials side by side in one pack.

    With `slots_by_memory` there are `slots` at the most, and no more than memory holds.
    """

    cpus: int = 1
    gpus: float = 0.0
    workers: int = 1
    packs: int = 1
    slots: int = 4
    slots_by_memory: bool = False

    def fit(self, machines: Iterable[Mapping[str, float]]) -> int:
        """How many processes of these cpus and gpus stand side by side on `machines`; none spans two of them.

        A machine is its totals as Ray names them: `{"CPU": 8.0, "GPU": 1.0}`. Parts of a GPU share one whole GPU.
        """
        return sum(self._on(machine) for machine in machines)

    def beside(self, machines: Iterable[Mapping[str, float]]) -> int:
        """The most of the packs that share one of `machines`."""
        return max(1, min(self.packs, max((self._on(machine) for machine in machines), default=1)))

    def _on(self, machine: Mapping[str, float]) -> int:
        by_cores = int(machine.get("CPU", 0.0) / max(1, self.cpus))
        if not self.gpus:
            return by_cores
        gpus = int(machine.get("GPU", 0.0))
        by_gpus = gpus * int(1 / self.gpus + 1e-9) if self.gpus < 1 else int(gpus / self.gpus)
        return min(by_cores, by_gpus)


def usable_cpus() -> int:
    """Whole cores this process may use: its affinity, bounded by the quota of its control group (v2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count


@dataclass(frozen=True)
class Progress:
    """A checkpoint that verified: the directory of its files and the note that was saved beside them."""

    directory: Path
    note: Mapping[str, Any]


@runtime_checkable
class StepContext(Protocol):
    """What a verb is handed beside its question: where to write, what to read, progress that outlives the process."""

    @property
    def name(self) -> str:
        """The step's fingerprint (hex)."""

    @property
    def out(self) -> Path:
        """An empty local directory; what the outcome names must lie below it."""

    @property
    def resources(self) -> Resources:
        """What this step may use; `resources.cpus` is the number of threads."""

    @property
    def services(self) -> Mapping[str, str]:
        """Addresses of the world an effect may touch: `database`, `store`, `tracking`, `home`; and who asks, for it to
        write down: `run` (id), `plan` (digest of the locked plan), `verbs` (names and versions). Never identity.
        """

    def fetch(self, artifact: Artifact) -> Path:
        """A local read-only directory holding the artifact's files, each verified against its sha256.

        Raises CorruptionError where bytes differ, TemporaryError where the store is away.
        """

    def keep(self, *paths: str) -> tuple[FileEntry, ...]:
        """Entries (sha256, size) for files written below `out`, by relative path, in the order given."""

    def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
        """Make the files of `directory` and `note` durable as the newest checkpoint of this step.

        Returns when it is committed. Raises ClaimLost if another owner has taken the step.
        """

    def load_progress(self) -> Progress | None:
        """The newest checkpoint of this step that verifies, from whichever owner; None if there is none."""

    def record(self, key: str, value: Mapping[str, Any]) -> None:
        """Remember one small fact (a rung of a trial, say) under `key`, once and durably; the first value stands.

        Raises ClaimLost if another owner has taken the step.
        """

    def recorded(self) -> dict[str, Mapping[str, Any]]:
        """All facts recorded for this step so far, by key, from whichever owner."""

    def remembered(self, what: str) -> list[Mapping[str, Any]]:
        """What `about[what]` says of the newest outcomes of any run here, newest first, each with its `run`.

        For guesses about cost; no outcome may depend on it.
        """

    def report(self, event: str, /, **facts: Any) -> None:
        """Show progress: an event such as `train.step` with plain facts. Cheap; may be dropped under load."""

    def check(self) -> None:
        """Raise RunCancelled or ClaimLost if this work should stop. Call it at least every few seconds."""


@dataclass(frozen=True)
class Question:
    """One named question of a pack: `key` says whose it is (a task, a seed) and bears no identity."""

    key: str
    spec: Spec
    inputs: tuple[Artifact, ...] = ()


A_co = TypeVar("A_co", bound=Artifact, default=Artifact, covariant=True)


@dataclass(frozen=True)
class Verb(Generic[A_co]):
    """A room's verb by its import name; `Verb[Adapter]` is one that answers with an Adapter.

    `version` is raised when the meaning changes: old outcomes are then no longer found. `drives_ray` marks a verb that
    only drives other Ray work and so reserves no core; `transient` an effect that may end with its process (servers on a
    local Ray), and so is done again when a run is taken up. `packed` names a function answering many questions in one
    execution: `packed(questions, steps, **using)` yields (the question's index, its Artifact or PetlRayError) as each is
    known, so that each is committed at once. `distributed` names a function with the signature of `function` that spreads
    one question over `resources.workers` processes of a Ray cluster; the placement alone chooses it (workers > 1), so it
    is no part of the identity.
    """

    name: str
    version: int
    function: str
    packed: str | None = None
    distributed: str | None = None
    drives_ray: bool = False
    transient: bool = False
    using_: tuple[tuple[str, Verb[Any]], ...] = field(default=())

    @property
    def identity(self) -> dict[str, Any]:
        """What enters a fingerprint: name, version and the same of every verb it uses."""
        return {
            "name": self.name,
            "version": self.version,
            "using": {role: verb.identity for role, verb in self.using_},
        }

    def using(self, **verbs: Verb[Any]) -> Verb[A_co]:
        """The same verb, handed other rooms' verbs by role: `search.using(train=train)`."""
        return replace(self, using_=tuple(sorted(verbs.items())))

    def __call__(self, spec: Spec, *inputs: Artifact, step: StepContext) -> A_co:
        function = self.function
        if self.distributed is not None and step.resources.workers > 1:
            function = self.distributed
        outcome = load(function)(spec, *inputs, step=step, **dict(self.using_))
        assert isinstance(outcome, Artifact), f"{self.name} returned {type(outcome).__name__}, not an Artifact"
        return cast("A_co", outcome)

    def answer_all(
        self, questions: Sequence[Question], steps: Sequence[StepContext]
    ) -> Iterator[tuple[int, Artifact | PetlRayError]]:
        """Answer many questions in one execution: index and Artifact or error as each is known. Needs `packed`."""
        assert self.packed is not None, f"{self.name} answers one question at a time"
        yield from load(self.packed)(questions, steps, **dict(self.using_))


class Door(ModuleType):
    """A room's package whose verbs keep their names.

    A verb lives in a module of its own name, and Python puts a submodule that is loaded into its package under that
    name: `petl_ray.training.train` would be the verb before the module was first needed and the module afterwards.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and isinstance(self.__dict__.get(name), Verb)):
            super().__setattr__(name, value)


def keep_verbs(package: str) -> None:
    """Let the verbs that `package` has defined keep their names; a door's last line."""
    sys.modules[package].__class__ = Door


def load(path: str) -> Callable[..., Any]:
    """The callable at `package.module:name`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Turn:
    """What one turn of a session came to: metrics of who has arrived, the error of who cannot go on, by key."""

    arrived: dict[str, dict[str, float]]
    failed: dict[str, PetlRayError]


class SlotSession(Protocol):
    """K slots of one resident base in one process: what a search drives (training owns it, tuning only calls it)."""

    def admit(self, key: str, spec: Spec, data: Path, checkpoint: Path | None = None) -> None:
        """Give `key` a free slot with the adapter that `spec` asks for, continued from `checkpoint` if there is one."""

    def aim(self, key: str, share: float) -> None:
        """From the next turn on train `key` until that fraction (0…1] of its horizon."""

    def turn(self) -> Turn:
        """One step of everybody who was aimed, side by side; who has arrived is validated and aimed no longer.

        Metrics by key: `score`, `loss`, `steps`, `trained_share`; a slot that diverged gives `{"diverged": 1.0}` and
        leaves its neighbours alone.
        """

    def save(self, key: str, directory: Path) -> None:
        """Write everything that continues `key` later (weights, optimizer, RNG, position) as safetensors and JSON."""

    def drop(self, key: str) -> None:
        """Free the slot of `key`."""

    def estimate(self, spec: Spec, labels: int) -> dict[str, float]:
        """Before anything is paid: `trained_share` (0…1) and `memory_bytes` of one slot for `spec` with so many labels.

        It follows from the question alone: not from what the session has seen, nor from the machine.
        """

    def footprint(self, spec: Spec, labels: int) -> dict[str, Any]:
        """What a pack is planned with, here: `estimate`; names of `base` and `device`; `base_bytes`; the `slot_bytes` of
        each slot (of them `state_bytes` beside activations), the `pass_bytes` that all together need once (of them
        `kept_bytes` beside activations) and the `row_bytes` of one row's activations; `machine_bytes`, the memory there
        is, and `free_bytes`, what of it this process may take, with its base (None: all); `shared`, whether slots share
        passes of the base.
        """

    def memory(self) -> dict[str, Any]:
        """What slots took here at their peak: `base`, `device`, `slots`, `estimated_bytes` for the passes that were made,
        of them `state_bytes` beside activations, `measured_bytes`; empty while there was none.
        """

    def close(self) -> None:
        """Give up all slots; the session is of no use afterwards."""


SHARED_FIELDS = ("base", "task_type", "gradient_checkpointing")  # of a training spec: what all slots of a session share


class TrainsSlots(Protocol):
    """The door that training offers to a search: opens a session of K slots for the base that `spec` names."""

    def __call__(self, spec: Spec, slots: int, threads: int) -> SlotSession: ...
