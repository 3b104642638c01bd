"""A pack: one process that holds a session's slots and trains side by side what trials ask it to.

Plain Python around the protocol of `petl_ray.verb.SlotSession`; what makes an actor of it stands in `packs.on_ray`. One
thread drives the slots, turn by turn; orders wait at its door and take a slot as soon as one is free, without anybody
else being asked. What a trial comes to does not depend on who trains beside it (see `petl_ray.training.sharing`).
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from petl_ray.errors import CapacityError, CorruptionError, PermanentError, TemporaryError
from petl_ray.fingerprint import sha256_of
from petl_ray.spec import Spec
from petl_ray.tuning.ledger import Files, read_files, write_files
from petl_ray.verb import SHARED_FIELDS, SlotSession, TrainsSlots, load

T = TypeVar("T")


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
    life: int = 0

    @property
    def key(self) -> str:
        """The trial's name within the pack, another one in every life."""
        return life_key(f"{self.search}/{self.number}", self.life)

    def spec(self) -> Spec:
        """The training spec of the trial."""
        return cast("type[Spec]", load(self.recipe_spec)).model_validate(self.recipe)

    def plain(self) -> dict[str, Any]:
        """The order as JSON."""
        return asdict(self)


def life_key(name: str, life: int) -> str:
    """What a trial is called in a pack after it has become a copy of another `life` times."""
    return f"{name}.{life}" if life else name


@dataclass(eq=False)
class Errand:
    """An order under way: those who wait for its answer, and the share of the turns' time it has taken."""

    order: Order
    answers: list[Future[dict[str, Any]]]
    session: SlotSession | None = None
    seconds: float = 0.0


class Pack:
    """Slots of one session a base, the newest checkpoint of every trial that passed here, and the data of its searches.

    `door` names the training room's `open_session`. `advance`, `weigh` and `footprints` may be called from many threads
    and wait for the one that drives; the other methods touch files and figures only.
    """

    def __init__(self, door: str, slots: int, threads: int) -> None:
        self._door, self._most, self._threads = door, max(1, slots), threads
        self._slots, self._alone = self._most, False
        self._directory = Path(tempfile.mkdtemp(prefix="petl-ray-pack-"))
        self._sessions: dict[str, SlotSession] = {}
        self._resident: dict[str, tuple[SlotSession, int]] = {}  # by key, least recently trained first
        self._lock = threading.Lock()  # guards the checkpoint files
        self._door_bell: SimpleQueue[Errand | Callable[[], None] | None] = SimpleQueue()
        self._waiting: list[Errand] = []
        self._under_way: dict[str, Errand] = {}
        self._done: dict[str, tuple[Order, dict[str, Any]]] = {}  # the newest of every trial
        self._asked: dict[str, Order] = {}  # the newest of every trial that somebody waits for
        self._broken = False
        self._driver = threading.Thread(target=self._drive, name="pack", daemon=True)
        self._driver.start()

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

    def allow(self, slots: int, alone: bool) -> None:
        """From now on hold no more than `slots` trials of one base at a time; with `alone`, one trial of whatever base."""
        self._slots, self._alone = min(self._most, max(1, slots)), alone

    def leave_sessions(self) -> None:
        """Close all sessions, for others that have no room beside them; who is still under way there is told."""
        self._door_bell.put(self._close_sessions)

    def footprints(self, orders: list[Order]) -> list[dict[str, Any]]:
        """What a pack is planned with: each order's `SlotSession.footprint` and `session`, a name of what it shares.

        `refused` with the reason where there is none. A session is closed before another is opened, since nobody knows
        yet whether both have room.
        """
        answer: Future[list[dict[str, Any]]] = Future()
        self._door_bell.put(lambda: _settle(answer, lambda: [self._footprint(order) for order in orders]))
        return answer.result()

    def has(self, key: str, rung: int) -> bool:
        """Whether a trial's order for `rung` waits here, is under way or done, so that it is answered when asked again.

        Raises RuntimeError where a whole turn broke: nobody knows what this process is still good for.
        """
        if self._broken:
            raise RuntimeError("a turn broke for everybody in it")
        done = (order for order, _ in list(self._done.values()))
        return any(one.key == key and one.rung == rung for one in (*self._asked.values(), *done))

    def memory(self) -> dict[str, Any]:
        """What the slots took at their peak (see `SlotSession.memory`); empty where several bases share the process."""
        sessions = list(self._sessions.values())
        return sessions[0].memory() if len(sessions) == 1 else {}

    def weigh(self, orders: list[Order]) -> list[dict[str, Any]]:
        """What each order's slot would cost; `refused` with the reason where it cannot be."""
        answer: Future[list[dict[str, Any]]] = Future()
        self._door_bell.put(lambda: _settle(answer, lambda: [self._weight(order) for order in orders]))
        return answer.result()

    def advance(self, order: Order) -> dict[str, Any]:
        """Train one trial to its rung and validate: `score`, `loss`, `steps`, `trained_share`, `seconds`.

        `seconds` is the trial's share of the turns it took part in. `diverged` or `refused` with a reason where the
        configuration is at fault; `refused` with `only_here`, which says why (memory or fault), where it may fare better
        on another machine. Raises
        TemporaryError where this process does not hold the search's rows (it was restarted).
        """
        answer: Future[dict[str, Any]] = Future()
        self._asked[order.key] = order
        self._door_bell.put(Errand(order, [answer]))
        try:
            return answer.result()
        finally:
            self._asked.pop(order.key, None)

    def close(self) -> None:
        """End the driving thread after its turn and remove the local files."""
        self._door_bell.put(None)
        self._driver.join()
        shutil.rmtree(self._directory, ignore_errors=True)

    # --- the driving thread -------------------------------------------------------------------------------------------

    def _drive(self) -> None:
        while self._open_door():
            self._let_in()
            for session in {id(one.session): one.session for one in self._under_way.values()}.values():
                assert session is not None
                self._turn(session)

    def _open_door(self) -> bool:
        """Hear what has come, waiting for it where there is nothing else to do; False when the pack is closed."""
        while True:
            try:
                heard = self._door_bell.get(block=not (self._under_way or self._waiting))
            except Empty:
                return True
            if heard is None:
                return False
            if isinstance(heard, Errand):
                self._waiting.append(heard)
            else:
                heard()

    def _let_in(self) -> None:
        """Give free slots to those who wait, first come first served."""
        still = []
        for errand in self._waiting:
            if self._known(errand):
                continue
            try:
                spec = errand.order.spec()
                session = self._session(spec)
                if not self._has_room(session):
                    still.append(errand)
                    continue
                self._admit(session, errand.order, spec)
                session.aim(errand.order.key, errand.order.target)
            except PermanentError as error:
                self._answer(errand, {"refused": str(error), **_only_here(error, at_the_door=True)})
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to who asked, not to who trains beside
                self._break(errand, error)
            else:
                errand.session = session
                self._under_way[errand.order.key] = errand
        self._waiting = still

    def _known(self, errand: Errand) -> bool:
        """Whether this very order is under way or done: who asked first has died, and asks again in another process."""
        key = errand.order.key
        if (before := self._under_way.get(key)) is not None and before.order == errand.order:
            before.answers += errand.answers
            return True
        done = self._done.get(key)
        if done is None or done[0] != errand.order:
            return False
        for answer in errand.answers:
            answer.set_result(done[1])
        return True

    def _has_room(self, session: SlotSession) -> bool:
        if self._alone:
            return not self._under_way
        return sum(one.session is session for one in self._under_way.values()) < self._slots

    def _turn(self, session: SlotSession) -> None:
        mine = {key: one for key, one in self._under_way.items() if one.session is session}
        began_s = time.perf_counter()
        try:
            turn = session.turn()
        except Exception as error:  # noqa: BLE001 - where the slots stand is unknown now: retries begin at checkpoints
            self._broken = True
            for errand in mine.values():
                self._break(errand, error)
            return
        for errand in mine.values():
            errand.seconds += (time.perf_counter() - began_s) / len(mine)
        for key, metrics in turn.arrived.items():
            self._answer(mine[key], dict(metrics))
        for key, failure in turn.failed.items():
            if isinstance(failure, PermanentError):  # a question that makes no sense is refused at the door
                self._answer(mine[key], {"refused": str(failure), **_only_here(failure)})
            else:
                self._break(mine[key], failure)

    def _answer(self, errand: Errand, facts: dict[str, Any]) -> None:
        """Keep or leave the slot, then say what came of it."""
        self._under_way.pop(errand.order.key, None)
        try:
            if facts.get("diverged") or facts.get("refused") or errand.order.target >= 1.0:
                self._drop(errand.order.key)
            else:
                self._save(errand.order)
        except Exception as error:  # noqa: BLE001 - a full disk, say: the trial's own failure
            self._break(errand, error)
            return
        told = {**facts, "seconds": round(errand.seconds, 4)}
        if not facts.get("refused"):
            self._done[errand.order.key] = errand.order, told
        for answer in errand.answers:
            answer.set_result(told)

    def _break(self, errand: Errand, error: Exception) -> None:
        self._under_way.pop(errand.order.key, None)
        self._leave(errand.order.key)
        for answer in errand.answers:
            answer.set_exception(error)

    def _weight(self, order: Order) -> dict[str, Any]:
        try:
            spec = order.spec()
            return dict(self._session(spec).estimate(spec, order.labels))
        except PermanentError as error:
            return {"refused": str(error)}

    def _footprint(self, order: Order) -> dict[str, Any]:
        try:
            spec = order.spec()
            if (shared := _shared(spec)) not in self._sessions:
                self._close_sessions()
            return {**self._session(spec).footprint(spec, order.labels), "session": shared}
        except Exception as error:  # noqa: BLE001 - whatever it is, the trial meets it too, and is told
            return {"refused": str(error)}

    def _drop(self, key: str) -> None:
        """Free the slot of a trial and forget its checkpoint."""
        self._leave(key)
        with self._lock:
            shutil.rmtree(self._directory / "checkpoints" / key, ignore_errors=True)

    def _admit(self, session: SlotSession, order: Order, spec: Spec) -> None:
        """A slot for `order` that stands where its last rung ended; who stays in one without training makes room."""
        owner, rung = self._resident.pop(order.key, (None, -1))
        if owner is session and rung == order.rung - 1:
            self._resident[order.key] = (session, rung)
            return
        if owner is not None:
            owner.drop(order.key)
        if self._alone:
            for key in list(self._resident):
                self._leave(key)
        data = self._directory / "data" / order.search
        if not data.is_dir():
            raise TemporaryError(f"search {order.search}", "its rows are not here", "this pack was restarted")
        idle = [key for key, (one, _) in self._resident.items() if one is session and key not in self._under_way]
        if sum(one is session for one, _ in self._resident.values()) >= self._slots:
            self._leave(idle[0])
        earlier = [rung for rung in range(order.rung - 1, -1, -1) if self._checkpoint(order.key, rung).is_dir()]
        try:
            session.admit(order.key, spec, data, self._checkpoint(order.key, earlier[0]) if earlier else None)
        except CorruptionError:  # of a checkpoint, if there is one: it goes no further, and the trial begins again
            if not earlier:
                raise
            session.admit(order.key, spec, data)
        self._resident[order.key] = (session, order.rung - 1)

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
        shared = _shared(spec)
        if shared not in self._sessions:
            open_session = cast("TrainsSlots", load(self._door))
            self._sessions[shared] = open_session(spec, self._most, self._threads)
        return self._sessions[shared]

    def _close_sessions(self) -> None:
        gone = TemporaryError("its session", "is closed", "others have their turn")
        for errand in [*self._under_way.values(), *self._waiting]:
            self._break(errand, gone)
        self._waiting.clear()
        self._resident.clear()
        while self._sessions:
            self._sessions.popitem()[1].close()
        gc.collect()  # models refer to themselves

    def _checkpoint(self, key: str, rung: int) -> Path:
        return self._directory / "checkpoints" / key / str(rung)


def _only_here(error: PermanentError, *, at_the_door: bool = False) -> dict[str, str]:
    """What is no verdict on the configuration: memory that this machine lacks, and whatever broke a pass."""
    if isinstance(error, CapacityError):
        return {"only_here": "memory"}
    return {} if at_the_door else {"only_here": "fault"}


def _shared(spec: Spec) -> str:
    """Names what trials must have in common to share a session."""
    return sha256_of([getattr(spec, name, None) for name in SHARED_FIELDS])


def _settle(answer: Future[T], make: Callable[[], T]) -> None:
    try:
        answer.set_result(make())
    except Exception as error:  # noqa: BLE001 - who asked is told
        answer.set_exception(error)
