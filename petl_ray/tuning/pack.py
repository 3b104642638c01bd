"""A pack: one process that holds a session's slots and trains side by side what trials ask it to.

Plain Python around the protocol of `petl_ray.verb.SlotSession`; what makes an actor of it stands in `packs.on_ray`. One
thread drives the slots, turn by turn; orders wait at its door and take a slot as soon as one is free, without anybody
else being asked. What a trial comes to does not depend on who trains beside it (see `petl_ray.training.sharing`).
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from petl_ray.errors import CapacityError, CorruptionError, PermanentError, TemporaryError
from petl_ray.spec import Spec
from petl_ray.tuning.ledger import Files
from petl_ray.tuning.order import Order, life_key
from petl_ray.tuning.sessions import NoSession, Sessions, first_line, is_of_the_device, shared_name
from petl_ray.tuning.shelf import Shelf
from petl_ray.verb import SlotSession

__all__ = ["Order", "Pack", "PackBroken", "life_key"]


class PackBroken(RuntimeError):
    """Nobody knows what a pack's process is still good for: another one is to take its place."""


@dataclass(eq=False)
class Errand:
    """An order under way: those who wait for its answer, and the share of the turns' time it has taken.

    `beside` are the keys of those who trained when memory did not suffice for it as well.
    """

    order: Order
    answers: list[Future[dict[str, Any]]]
    session: SlotSession | None = None
    seconds: float = 0.0
    beside: frozenset[str] = frozenset()


class Pack:
    """Slots of one session a base, the newest checkpoint of every trial that passed here, and the data of its searches.

    `door` names the training room's `open_session`. `advance`, `weigh` and `footprints` may be called from many threads
    and wait for the one that drives; the other methods touch files and figures only.
    """

    def __init__(self, door: str, slots: int, threads: int) -> None:
        self._most = max(1, slots)
        self._slots, self._alone = self._most, False
        self._shelf = Shelf()
        self._sessions = Sessions(door, self._most, threads)
        self._resident: dict[str, tuple[SlotSession, int]] = {}  # by key, least recently trained first
        self._door_bell: SimpleQueue[Errand | Callable[[], None] | None] = SimpleQueue()
        self._waiting: list[Errand] = []
        self._under_way: dict[str, Errand] = {}
        self._done: dict[str, tuple[Order, dict[str, Any]]] = {}  # the newest of every trial
        self._asked: dict[str, Order] = {}  # the newest of every trial that somebody waits for
        self._turned_away: dict[str, NoSession] = {}  # trials whose base could not be opened
        self._broken = ""  # why nobody knows what this process is still good for
        self._driver = threading.Thread(target=self._drive, name="pack", daemon=True)
        self._driver.start()

    def put_data(self, search: str, files: Files) -> None:
        """Lay down the rows of a search."""
        self._shelf.put_rows(search, files)

    def put_checkpoint(self, key: str, rung: int, files: Files) -> None:
        """Lay down the checkpoint of a trial that was trained elsewhere or in an earlier attempt."""
        self._shelf.put(key, rung, files)

    def checkpoint(self, key: str, rung: int) -> Files:
        """The files of a trial's checkpoint at `rung`."""
        return self._shelf.files(key, rung)

    def forget(self, key: str) -> None:
        """A trial has ended: its slot is free and its checkpoint removed, unless it is under way here after all."""
        self._door_bell.put(partial(self._forget, key))

    def allow(self, slots: int, alone: bool) -> None:
        """From now on hold no more than `slots` trials of one base at a time; with `alone`, one trial of whatever base."""
        self._slots, self._alone = min(self._most, max(1, slots)), alone

    def leave_sessions(self) -> None:
        """Close all sessions, for others that have no room beside them; who is still under way there is told."""
        self._door_bell.put(self._close_sessions)

    def footprints(self, orders: list[Order]) -> list[dict[str, Any]]:
        """What a pack is planned with: each order's `SlotSession.footprint` and `session`, a name of what it shares.

        `refused` with the reason where there is none, `unopened` with a NoSession where its base cannot be opened here. A
        session is closed before another is opened, since nobody knows yet whether both have room.
        """
        return self._between_turns(self._footprint, orders)

    def has(self, key: str, rung: int) -> bool:
        """Whether a trial's order for `rung` waits here, is under way or done, so that it is answered when asked again.

        Raises NoSession where the trial's base could not be opened here, PackBroken where a turn broke for everybody in it
        or the device failed.
        """
        if key in self._turned_away:
            raise self._turned_away[key]
        if self._broken:
            raise PackBroken(self._broken)
        done = (order for order, _ in list(self._done.values()))
        return any(one.key == key and one.rung == rung for one in (*self._asked.values(), *done))

    def memory(self) -> dict[str, Any]:
        """What the slots took at their peak (see `SlotSession.memory`); empty where several bases share the process."""
        sessions = self._sessions.all()
        return sessions[0].memory() if len(sessions) == 1 else {}

    def weigh(self, orders: list[Order]) -> list[dict[str, Any]]:
        """What each order's slot would cost; `refused` with the reason where it cannot be. Raises NoSession where their base
        cannot be opened here."""
        return self._between_turns(self._weight, orders)

    def advance(self, order: Order) -> dict[str, Any]:
        """Train one trial to its rung and validate: `score`, `loss`, `steps`, `trained_share`, `seconds`.

        `seconds` is the trial's share of the turns it took part in. `diverged` or `refused` with a reason where the
        configuration is at fault; `refused` with `only_here`, which says why (memory or fault), where it may fare better
        on another machine. Raises NoSession where the trial's base cannot be opened here, and TemporaryError where this
        process does not hold the search's rows (it was restarted).
        """
        answer: Future[dict[str, Any]] = Future()
        self._asked[order.key] = order
        self._door_bell.put(Errand(order, [answer]))
        try:
            return answer.result()
        finally:
            self._asked.pop(order.key, None)

    def close(self, patience_s: float | None = None) -> None:
        """End the driving thread after its turn, waiting for it no longer than `patience_s`, and remove the local files."""
        self._door_bell.put(None)
        self._driver.join(patience_s)
        self._shelf.close()

    def _between_turns(self, ask: Callable[[Order], dict[str, Any]], orders: list[Order]) -> list[dict[str, Any]]:
        """What the driving thread says of each order, or the error that it met."""
        answer: Future[list[dict[str, Any]]] = Future()

        def settle() -> None:
            try:
                answer.set_result([ask(order) for order in orders])
            except Exception as error:  # noqa: BLE001 - who asked is told
                answer.set_exception(error)

        self._door_bell.put(settle)
        return answer.result()

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
                continue
            try:
                heard()
            except Exception as error:  # noqa: BLE001 - who drives goes on, or nobody here is ever answered
                self._suspect(error, "it failed between turns")

    def _let_in(self) -> None:
        """Give free slots to those who wait, first come first served; nobody passes one who waits for memory."""
        still: list[Errand] = []
        for errand in self._waiting:
            if not self._known(errand) and (any(one.beside for one in still) or not self._enter(errand)):
                still.append(errand)
        self._waiting = still

    def _enter(self, errand: Errand) -> bool:
        """Give an errand its slot, or say why it gets none; False where it waits, for a slot or for memory."""
        if errand.beside and errand.beside <= self._under_way.keys():
            return False
        try:
            spec = errand.order.spec()
            session = self._sessions.open(spec)
            if not self._has_room(session) or not self._fits(session, errand, spec):
                return False
            session.aim(errand.order.key, errand.order.target)
        except PermanentError as error:
            self._answer(errand, {"refused": str(error), **_only_here(error, at_the_door=True)})
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to who asked, not to who trains beside
            if isinstance(error, NoSession):
                self._turned_away[errand.order.key] = error
            self._suspect(error)
            self._break(errand, error)
        else:
            errand.session = session
            self._under_way[errand.order.key] = errand
        return True

    def _fits(self, session: SlotSession, errand: Errand, spec: Spec) -> bool:
        """Take an errand in, whoever stays in a slot without training leaving for it; False where memory does not suffice
        as long as others train. Who is refused for it is refused alone."""
        while True:
            try:
                self._admit(session, errand.order, spec)
                return True
            except CapacityError:
                if not (idle := self._idle()) and not self._under_way:
                    raise
            for key in idle:
                self._leave(key)
            if not idle:
                errand.beside = frozenset(self._under_way)
                return False

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
            self._suspect(error, "a turn broke for everybody in it")
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
            self._suspect(error)
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

    def _suspect(self, error: Exception, sure: str = "") -> None:
        """Another process must take this one's place after a fault of its device, or where `sure` says why; other errors
        may be one trial's alone."""
        if sure or is_of_the_device(error):
            self._broken = self._broken or f"{sure or 'its device failed'}: {first_line(error)}"

    def _weight(self, order: Order) -> dict[str, Any]:
        spec = order.spec()
        session = self._sessions.open(spec)
        try:
            return dict(session.estimate(spec, order.labels))
        except PermanentError as error:
            return {"refused": str(error)}

    def _footprint(self, order: Order) -> dict[str, Any]:
        try:
            spec = order.spec()
            if self._sessions.is_new(spec):
                self._close_sessions()
            return {**self._sessions.open(spec).footprint(spec, order.labels), "session": shared_name(spec)}
        except NoSession as error:
            return {"unopened": error}
        except Exception as error:  # noqa: BLE001 - whatever it is, the trial meets it too, and is told
            return {"refused": str(error)}

    def _drop(self, key: str) -> None:
        """Free the slot of a trial and forget its checkpoint."""
        self._leave(key)
        self._shelf.forget(key)

    def _forget(self, key: str) -> None:
        if key not in self._under_way:
            self._drop(key)
            self._done.pop(key, None)

    def _admit(self, session: SlotSession, order: Order, spec: Spec) -> None:
        """A slot for `order` that stands where its last rung ended; who stays in one without training makes room."""
        if self._resident.get(order.key) == (session, order.rung - 1):
            self._resident[order.key] = self._resident.pop(order.key)  # the one that trains last
            return
        self._leave(order.key)
        if self._alone:
            for key in list(self._resident):
                self._leave(key)
        data = self._shelf.rows(order.search)
        if data is None:
            raise TemporaryError(f"search {order.search}", "its rows are not here", "this pack was restarted")
        if sum(one is session for one, _ in self._resident.values()) >= self._slots:
            self._leave(self._idle(session)[0])
        checkpoint = self._shelf.newest(order.key, order.rung)
        try:
            session.admit(order.key, spec, data, checkpoint)
        except CorruptionError:  # of a checkpoint, if there is one: it goes no further, and the trial begins again
            if checkpoint is None:
                raise
            session.admit(order.key, spec, data)
        self._resident[order.key] = (session, order.rung - 1)

    def _idle(self, session: SlotSession | None = None) -> list[str]:
        """Who stays in a slot (of `session`) without training, the least recently trained first."""
        here = ((key, one) for key, (one, _) in self._resident.items() if key not in self._under_way)
        return [key for key, one in here if session is None or one is session]

    def _save(self, order: Order) -> None:
        session, _ = self._resident.pop(order.key)
        self._resident[order.key] = (session, order.rung)
        self._shelf.write(order.key, order.rung, partial(session.save, order.key))

    def _leave(self, key: str) -> None:
        session, _ = self._resident.pop(key, (None, -1))
        try:
            if session is not None:
                session.drop(key)
        except Exception as error:  # noqa: BLE001 - nothing else of this process can be trusted either
            self._suspect(error, "a slot cannot be freed")

    def _close_sessions(self) -> None:
        gone = TemporaryError("its session", "is closed", "others have their turn")
        for errand in [*self._under_way.values(), *self._waiting]:
            self._break(errand, gone)
        self._waiting.clear()
        self._resident.clear()
        self._sessions.close()
        gc.collect()  # models refer to themselves


def _only_here(error: PermanentError, *, at_the_door: bool = False) -> dict[str, str]:
    """What is no verdict on the configuration: memory that this machine lacks, and whatever broke a pass."""
    if isinstance(error, CapacityError):
        return {"only_here": "memory"}
    return {} if at_the_door else {"only_here": "fault"}
