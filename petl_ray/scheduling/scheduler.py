"""The scheduler: looks at the schedules every few seconds and starts what is due. Run as many as you like.

A tick is claimed by name before anything starts, so of several schedulers one fires; a scheduler that dies leaves a
claim that expires, and another carries its firing on. The run's id follows from schedule and tick, so what the dead
one had started is followed while it lives, resumed where it was left behind, and its end is noted as the journal has it.
What goes wrong with one schedule is told, and stops neither the others nor the scheduler.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from petl_ray.errors import ClaimLost, PetlRayError
from petl_ray.orchestration import runs
from petl_ray.orchestration.claims import Claim, beat, insert_if_absent, take
from petl_ray.orchestration.home import Home, Opened, opened
from petl_ray.orchestration.owner import Owner
from petl_ray.registry.adapters import reconcile
from petl_ray.scheduling.schedules import Firing, Schedule, schedules
from petl_ray.store.tables import firings as table

LOOK_EVERY_S = 3.0
RECONCILE_EVERY_S = 60.0
_OVER = ("SUCCEEDED", "FAILED", "SKIPPED")


@dataclass
class Scheduler:
    """Fires what is due. `tell` hears of every firing as it starts and ends, `warn` of what goes wrong beside them, once."""

    home: Home
    tell: Callable[[Firing], None]
    warn: Callable[[str], None]
    owner: Owner = field(default_factory=Owner.new)
    _running: dict[str, _Fired] = field(default_factory=dict)
    _reconciled_s: float = field(default_factory=time.monotonic)
    _warned: dict[str, str] = field(default_factory=dict)

    def run(self, stop: threading.Event, look_every_s: float = LOOK_EVERY_S) -> None:
        """Look, fire and follow until `stop`, and keep MLflow's aliases to what the promotion rows say.

        Runs that are under way then go on by themselves and are followed later.
        """
        while not stop.is_set():
            with self._unharmed("looking at the schedules"):  # the next look finds the same ticks due
                self.look()
            if time.monotonic() - self._reconciled_s > RECONCILE_EVERY_S:
                self._reconciled_s = time.monotonic()
                with self._unharmed("MLflow's aliases"):
                    reconcile(self.home.database_url, self.home.tracking_url)
            stop.wait(look_every_s)

    def look(self) -> None:
        """One look: keep claims alive, note what has ended, start what is due."""
        world = opened(self.home)
        if self._running:
            beat(world.database, [fired.claim for fired in self._running.values()])
        for run_id, fired in list(self._running.items()):
            with self._unharmed(f"run {run_id}"):
                self._follow(world, run_id, fired)
        for schedule in schedules(world.database):
            with self._unharmed(f"schedule {schedule.name}"):
                for tick in self._wanted(world, schedule):
                    with self._unharmed(f"run {schedule.run_id(tick)}"):
                        self._fire(world, schedule, tick)

    @contextmanager
    def _unharmed(self, about: str) -> Iterator[None]:
        """Whatever goes wrong in the block is told, and again only when it is something else, and ends nothing."""
        try:
            yield
            self._warned.pop(about, None)
        except Exception as error:  # noqa: BLE001 - a scheduler must outlive whatever it meets in one schedule
            said = f"{about}: {error if isinstance(error, PetlRayError) else f'{type(error).__name__}: {error}'}"
            if self._warned.get(about) != said:
                self._warned[about] = said
                self.warn(said)

    def _follow(self, world: Opened, run_id: str, fired: _Fired) -> None:
        """Note the end of a firing that has ended; take up its run if whoever ran it is gone."""
        if fired.process is not None and fired.process.poll() is None:
            return
        code = None if fired.process is None else fired.process.returncode
        standing = runs.state_of(self.home, run_id)
        if standing == "RUNNING":
            return  # somebody else has taken the run up: its end is this firing's end
        if fired.process is None and standing == "RESUMABLE":
            self._start(world, fired, self.resumption(run_id))
            return
        fine = standing == "SUCCEEDED" or (standing is None and code == 0)
        said = f"run {standing or 'never began'}" if code is None else f"exit code {code}"
        left = f"; `petl-ray runs resume {run_id}` goes on" if standing == "RESUMABLE" else ""
        self._end(world, fired, None if fine else f"{said}{left}; see {self.home.log_of(run_id, 'driver')}")

    def _wanted(self, world: Opened, schedule: Schedule) -> list[float]:
        """The newest tick that is due and not fired yet, and firings that a dead scheduler left RUNNING."""
        with world.database.read() as conn:
            now = world.database.now(conn)
            rows = conn.execute(select(table.c.tick, table.c.state).where(table.c.schedule == schedule.name)).all()
        left = [row.tick for row in rows if row.state == "RUNNING" and schedule.run_id(row.tick) not in self._running]
        due = schedule.due(max([schedule.created_at, *(row.tick for row in rows)]), now)
        return [*left, *([] if due is None else [due])]

    def _fire(self, world: Opened, schedule: Schedule, tick: float) -> None:
        run_id = schedule.run_id(tick)
        with world.database.begin() as conn:
            claim = take(world.database, conn, [f"tick:{run_id}"], self.owner).get(f"tick:{run_id}")
            if claim is None:
                return  # another scheduler has it
            now = world.database.now(conn)
            same = (table.c.schedule == schedule.name) & (table.c.tick == tick)
            others = (table.c.schedule == schedule.name) & (table.c.tick != tick) & (table.c.state == "RUNNING")
            overlaps = conn.execute(select(table.c.run_id).where(others)).scalars().first()
            firing = Firing(schedule.name, tick, run_id, "RUNNING", now)
            if overlaps:
                note = f"{overlaps} was still running"
                firing = replace(firing, state="SKIPPED", ended_at=now, note=note)
            insert_if_absent(conn, table, vars(firing))
            standing = Firing(**conn.execute(select(table).where(same)).mappings().one())
            if standing.state in _OVER:
                claim.release(conn)
        if standing == firing and standing.state == "SKIPPED":
            self.tell(standing)
        if standing.state == "RUNNING":
            # A run that stands already was started by a scheduler that is gone; the next look sees how it does.
            known = runs.state_of(self.home, run_id) is not None
            fired = self._running[run_id] = _Fired(schedule, standing, claim)
            self.tell(standing)
            if not known:
                self._start(world, fired, self.command(schedule, run_id))

    def command(self, schedule: Schedule, run_id: str) -> list[str]:
        """The words that start a firing's run."""
        options: dict[str, Any] = dict(schedule.options)
        words = ["run", schedule.plan_path, "--run-id", run_id]
        for name in ("set", "task", "cluster"):
            for value in options.get(name, []):
                words += [f"--{name}", str(value)]
        return self._words(*words)

    def resumption(self, run_id: str) -> list[str]:
        """The words that take up a run that stands: from its own lock, whatever has become of its plan meanwhile."""
        return self._words("runs", "resume", run_id)

    def _words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "petl_ray.cli", *words, "--home", str(self.home.path)]

    def _start(self, world: Opened, fired: _Fired, command: list[str]) -> None:
        """Start the firing's process; a firing whose process cannot be started has FAILED."""
        log = self.home.log_of(fired.firing.run_id, "driver")
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as stream:
                fired.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    cwd=fired.schedule.options.get("directory") or Path.cwd(),
                    start_new_session=True,  # a stopped scheduler does not take its runs along
                )
        except OSError as error:
            self._end(world, fired, f"could not be started: {error}")

    def _end(self, world: Opened, fired: _Fired, trouble: str | None) -> None:
        """Note that a firing has SUCCEEDED, or FAILED with what is wrong, and give its claim back."""
        firing = replace(fired.firing, state="FAILED" if trouble else "SUCCEEDED", note=trouble)
        same = (table.c.schedule == firing.schedule) & (table.c.tick == firing.tick)
        with suppress(ClaimLost):  # this scheduler slept for too long: whoever took the firing over notes its end
            with world.database.begin() as conn:
                firing = replace(firing, ended_at=world.database.now(conn))
                fired.claim.check(conn)
                conn.execute(update(table).where(same).values(vars(firing)))
                fired.claim.release(conn)
            self.tell(firing)
        del self._running[firing.run_id]


@dataclass
class _Fired:
    """A firing under way; `process` is None while a run that somebody else started is followed."""

    schedule: Schedule
    firing: Firing
    claim: Claim
    process: subprocess.Popen[bytes] | None = None
