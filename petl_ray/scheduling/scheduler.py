"""The scheduler: looks at the schedules every few seconds and starts what is due. Run as many as you like.

A tick is claimed by name before anything starts, so of several schedulers one fires; a scheduler that dies leaves a
claim that expires, and another carries its firing on. The run's id follows from schedule and tick, so what the dead
one had started is followed while it lives, resumed where it was left behind, and its end is noted as the journal has it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from petl_ray.errors import ClaimLost, TemporaryError
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
    """Fires what is due. `tell` hears of every firing as it starts and ends."""

    home: Home
    tell: Callable[[Firing], None]
    owner: Owner = field(default_factory=Owner.new)
    _running: dict[str, _Fired] = field(default_factory=dict)
    _reconciled_s: float = field(default_factory=time.monotonic)

    def run(self, stop: threading.Event, look_every_s: float = LOOK_EVERY_S) -> None:
        """Look, fire and follow until `stop`, and keep MLflow's aliases to what the promotion rows say.

        Runs that are under way then go on by themselves and are followed later.
        """
        while not stop.is_set():
            with suppress(TemporaryError):  # the journal is away for a moment: the next look finds the same ticks due
                self.look()
                if time.monotonic() - self._reconciled_s > RECONCILE_EVERY_S:
                    self._reconciled_s = time.monotonic()
                    reconcile(self.home.database_url, self.home.tracking_url)
            stop.wait(look_every_s)

    def look(self) -> None:
        """One look: keep claims alive, note what has ended, start what is due."""
        world = opened(self.home)
        if self._running:
            beat(world.database, [fired.claim for fired in self._running.values()])
        for run_id, fired in list(self._running.items()):
            if fired.process is not None and fired.process.poll() is None:
                continue
            code = None if fired.process is None else fired.process.returncode
            standing = runs.state_of(self.home, run_id)
            if standing == "RUNNING":
                continue  # somebody else has taken the run up: its end is this firing's end
            if fired.process is None and standing == "RESUMABLE":
                fired.process = self._start(fired.schedule, run_id)  # whoever ran it is gone
                continue
            del self._running[run_id]
            with suppress(ClaimLost):  # this scheduler slept for too long: whoever took the firing over notes its end
                self._ended(world, fired, standing, code)
        for schedule in schedules(world.database):
            for tick in self._wanted(world, schedule):
                self._fire(world, schedule, tick)

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
            process = None if known else self._start(schedule, run_id)
            self._running[run_id] = _Fired(schedule, standing, claim, process)
            self.tell(standing)

    def command(self, schedule: Schedule, run_id: str) -> list[str]:
        """The words that start a firing's run."""
        options: dict[str, Any] = dict(schedule.options)
        command = [sys.executable, "-m", "petl_ray.cli", "run", schedule.plan_path, "--run-id", run_id]
        command += ["--home", str(self.home.path)]
        for name in ("set", "task", "cluster"):
            for value in options.get(name, []):
                command += [f"--{name}", str(value)]
        return command

    def _start(self, schedule: Schedule, run_id: str) -> subprocess.Popen[bytes]:
        log = self.home.log_of(run_id, "driver")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            return subprocess.Popen(
                self.command(schedule, run_id),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=schedule.options.get("directory") or Path.cwd(),
                start_new_session=True,  # a stopped scheduler does not take its runs along
            )

    def _ended(self, world: Opened, fired: _Fired, standing: str | None, code: int | None) -> None:
        run_id = fired.firing.run_id
        fine = standing == "SUCCEEDED" or (standing is None and code == 0)
        state = "SUCCEEDED" if fine else "FAILED"
        said = f"run {standing or 'never began'}" if code is None else f"exit code {code}"
        left = f"; `petl-ray runs resume {run_id}` goes on" if standing == "RESUMABLE" else ""
        note = None if fine else f"{said}{left}; see {self.home.log_of(run_id, 'driver')}"
        with world.database.begin() as conn:
            now = world.database.now(conn)
            fired.claim.check(conn)
            same = (table.c.schedule == fired.firing.schedule) & (table.c.tick == fired.firing.tick)
            conn.execute(update(table).where(same).values(state=state, ended_at=now, note=note))
            fired.claim.release(conn)
        self.tell(replace(fired.firing, state=state, ended_at=now, note=note))


@dataclass
class _Fired:
    """A firing under way; `process` is None while a run that somebody else started is followed."""

    schedule: Schedule
    firing: Firing
    claim: Claim
    process: subprocess.Popen[bytes] | None
