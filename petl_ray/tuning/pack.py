"""A pack: one process that holds a session's slots and trains, one after the other, what trials ask it to.

Plain Python around the protocol of `petl_ray.verb.SlotSession`; what makes an actor of it stands in `on_ray`. Trials
are trained alone, each in its turn: neighbours in one forward pass would change the last bits of a score, and with them
which trial goes on, by how many slots a placement has. `Pack.advance` is the one place to change that.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from petl_ray.errors import PermanentError, TemporaryError, TrainingError
from petl_ray.fingerprint import sha256_of
from petl_ray.spec import Spec
from petl_ray.tuning.ledger import Files, read_files, write_files
from petl_ray.verb import SlotSession, TrainsSlots, load

SHARED = (
    "base",
    "task_type",
    "gradient_checkpointing",
)  # trials that differ in one of these need sessions of their own


@dataclass(frozen=True)
class Order:
    """What a trial asks of its pack: train `key` from `rung` - 1 (or a checkpoint, or the start) until `target`."""

    search: str
    number: int
    rung: int
    target: float
    recipe: dict[str, Any]
    recipe_spec: str
    labels: int

    @property
    def key(self) -> str:
        """The trial's name within the pack."""
        return f"{self.search}/{self.number}"

    def spec(self) -> Spec:
        """The training spec of the trial."""
        return cast("type[Spec]", load(self.recipe_spec)).model_validate(self.recipe)

    def plain(self) -> dict[str, Any]:
        """The order as JSON."""
        return asdict(self)


class Pack:
    """Slots of one session a base, the newest checkpoint of every trial that passed here, and the data of its searches.

    `door` names the training room's `open_session`. While `advance` runs in one thread, the other methods may be called
    from another: they touch files only.
    """

    def __init__(self, door: str, slots: int, threads: int) -> None:
        self._door, self._slots, self._threads = door, max(1, slots), threads
        self._directory = Path(tempfile.mkdtemp(prefix="petl-ray-pack-"))
        self._sessions: dict[str, SlotSession] = {}
        self._resident: dict[str, tuple[SlotSession, int]] = {}  # by key, least recently trained first
        self._lock = threading.Lock()  # guards the checkpoint files

    def put_data(self, search: str, files: Files) -> None:
        """Lay down the rows of a search."""
        write_files(self._directory / "data" / search, files)

    def put_checkpoint(self, key: str, rung: int, files: Files) -> None:
        """Lay down the checkpoint of a trial that was trained elsewhere or in an earlier attempt."""
        with self._lock:
            write_files(self._checkpoint(key, rung), files)

    def checkpoint(self, key: str, rung: int) -> Files:
        """The files of a trial's checkpoint at `rung`."""
        with self._lock:
            return read_files(self._checkpoint(key, rung))

    def weigh(self, orders: list[Order]) -> list[dict[str, Any]]:
        """What each order's slot would cost; `refused` with the reason where it cannot be."""
        weights: list[dict[str, Any]] = []
        for order in orders:
            try:
                spec = order.spec()
                weights.append(dict(self._session(spec).estimate(spec, order.labels)))
            except PermanentError as error:
                weights.append({"refused": str(error)})
        return weights

    def advance(self, order: Order) -> dict[str, Any]:
        """Train one trial to its rung and validate: `score`, `loss`, `steps`, `trained_share`, `seconds`.

        `diverged` or `refused` with a reason where the configuration, not the machine, is at fault. Raises
        TemporaryError where this process does not hold the search's rows (it was restarted).
        """
        started_s = time.perf_counter()
        try:
            facts = self._train(order)
        except TrainingError as error:
            facts = {"diverged": 1.0, "reason": str(error)}
        except PermanentError as error:
            facts = {"refused": str(error)}
        if not facts.get("diverged") and not facts.get("refused") and order.target < 1.0:
            self._save(order)
        else:
            self.drop(order.key)
        return {**facts, "seconds": round(time.perf_counter() - started_s, 4)}

    def drop(self, key: str) -> None:
        """Free the slot of a trial and forget its checkpoint."""
        self._leave(key)
        with self._lock:
            shutil.rmtree(self._directory / "checkpoints" / key, ignore_errors=True)

    def _train(self, order: Order) -> dict[str, Any]:
        session = self._admit(order)
        try:
            return dict(session.advance({order.key: order.target})[order.key])
        except BaseException:  # where the slot stands is unknown now: a retry begins at the last checkpoint
            self._leave(order.key)
            raise

    def _admit(self, order: Order) -> SlotSession:
        session, rung = self._resident.pop(order.key, (None, -1))
        if session is not None and rung == order.rung - 1:
            self._resident[order.key] = (session, rung)
            return session
        if session is not None:
            session.drop(order.key)
        spec, data = order.spec(), self._directory / "data" / order.search
        if not data.is_dir():
            raise TemporaryError(f"search {order.search}", "its rows are not here", "this pack was restarted")
        session = self._session(spec)
        while sum(owner is session for owner, _ in self._resident.values()) >= self._slots:
            self._leave(next(key for key, (owner, _) in self._resident.items() if owner is session))
        earlier = [rung for rung in range(order.rung - 1, -1, -1) if self._checkpoint(order.key, rung).is_dir()]
        session.admit(order.key, spec, data, self._checkpoint(order.key, earlier[0]) if earlier else None)
        self._resident[order.key] = (session, order.rung - 1)
        return session

    def _save(self, order: Order) -> None:
        session, _ = self._resident.pop(order.key)
        self._resident[order.key] = (session, order.rung)
        with self._lock:
            home = self._checkpoint(order.key, order.rung)
            shutil.rmtree(home.parent, ignore_errors=True)
            home.mkdir(parents=True)
            session.save(order.key, home)

    def _leave(self, key: str) -> None:
        session, _ = self._resident.pop(key, (None, -1))
        if session is not None:
            session.drop(key)

    def _session(self, spec: Spec) -> SlotSession:
        shared = sha256_of([getattr(spec, name, None) for name in SHARED])
        if shared not in self._sessions:
            open_session = cast("TrainsSlots", load(self._door))
            self._sessions[shared] = open_session(spec, self._slots, self._threads)
        return self._sessions[shared]

    def _checkpoint(self, key: str, rung: int) -> Path:
        return self._directory / "checkpoints" / key / str(rung)

    def close(self) -> None:
        """Remove the local files."""
        shutil.rmtree(self._directory, ignore_errors=True)
