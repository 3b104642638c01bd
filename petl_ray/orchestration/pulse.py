"""The background thread of a run or a job: beats its claims, delivers its events, hears of a request to stop."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from types import TracebackType

from petl_ray.errors import RunCancelled
from petl_ray.orchestration import journal
from petl_ray.orchestration.claims import BEAT_S, LASTS_S, Claim, beat
from petl_ray.store import Database
from petl_ray.telemetry import Outbox, Sink

_TICK_S = 0.5
_LOOK_S = 1.0
_WINDOW = 200

log = logging.getLogger(__name__)


class Pulse:
    """Beats every claim it watches; events posted to `outbox` reach the journal at most twice a second.

    With a `sink` it also tails the run's events, whichever process posted them, and hands each to the sink once.
    `cancelled` is set when somebody asked the run to stop, `interrupted` when this process should stop by itself.
    """

    def __init__(
        self,
        database: Database,
        run_id: str,
        sink: Sink | None = None,
        *,
        beat_s: float = BEAT_S,
        lasts_s: float = LASTS_S,
    ) -> None:
        self.outbox = Outbox()
        self.cancelled = threading.Event()
        self.interrupted = threading.Event()
        self._database, self._run_id, self._sink = database, run_id, sink
        self._beat_s, self.lasts_s = beat_s, lasts_s
        self._claims: set[Claim] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._seen: set[int] = set()
        self._newest = 0
        self._thread = threading.Thread(target=self._live, name=f"pulse-{run_id}", daemon=True)

    def __enter__(self) -> Pulse:
        if self._sink is not None:
            with self._database.read() as conn:
                self._seen = {number for number, _ in journal.read_events(conn, self._run_id)}
            self._newest = max(self._seen, default=0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        with contextlib.suppress(Exception):  # the work is done; what is lost here is what people were shown
            self._deliver()

    def watch(self, claims: list[Claim]) -> None:
        """Beat these claims from now on."""
        with self._lock:
            self._claims.update(claims)

    def unwatch(self, claims: list[Claim]) -> None:
        """Leave these claims alone from now on."""
        with self._lock:
            self._claims.difference_update(claims)

    def check(self) -> None:
        """Raise RunCancelled if somebody asked the run to stop, or this process is about to end."""
        if self.cancelled.is_set():
            raise RunCancelled(f"run {self._run_id}", "somebody asked it to stop", do="Run the plan again to go on")
        if self.interrupted.is_set():
            raise RunCancelled(f"run {self._run_id}", "interrupted", do="Run the plan again to go on")

    def _live(self) -> None:
        beaten = looked = time.monotonic()
        while not self._ended.wait(_TICK_S):
            now = time.monotonic()
            try:
                if now - beaten >= self._beat_s:
                    with self._lock:
                        held = list(self._claims)
                    beat(self._database, held, self.lasts_s)
                    beaten = now
                if now - looked >= _LOOK_S and not self.cancelled.is_set():
                    self._look()
                    looked = now
                self._deliver()
            except Exception:  # a heart that stops is worse: it tries again, and expiry bounds the harm
                log.debug("pulse of %s", self._run_id, exc_info=True)

    def _look(self) -> None:
        with self._database.read() as conn:
            if journal.is_cancelled(conn, self._run_id):
                self.cancelled.set()

    def _deliver(self) -> None:
        taken = self.outbox.drain()
        try:
            journal.write_events(self._database, taken)
        except BaseException:
            self.outbox.put_back(taken)
            raise
        if self._sink is not None:
            self._tail(self._sink)

    def _tail(self, sink: Sink) -> None:
        """Hand on what is new. Ids may become visible out of order, so a window behind the newest is read again."""
        with self._database.read() as conn:
            found = journal.read_events(conn, self._run_id, after=self._newest - _WINDOW)
        for number, event in found:
            if number not in self._seen:
                self._seen.add(number)
                sink(event)
        self._newest = max(self._newest, *(number for number, _ in found)) if found else self._newest
        self._seen = {number for number in self._seen if number > self._newest - _WINDOW}
