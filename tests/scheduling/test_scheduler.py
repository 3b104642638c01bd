"""Schedulers side by side: one tick, one firing; a dead scheduler's firing is carried on."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from petl_ray import scheduling
from petl_ray.errors import ConflictError, DataError, TemporaryError
from petl_ray.orchestration import Placement, Run, start_run
from petl_ray.orchestration.claims import is_free
from petl_ray.orchestration.home import Home, opened
from petl_ray.orchestration.owner import Owner
from petl_ray.scheduling import Firing, Schedule
from petl_ray.scheduling.scheduler import Scheduler
from petl_ray.store.tables import claims, schedules

# A stand-in for `petl-ray run` at the process boundary: it leaves a mark, waits as told, and exits as told.
CHILD = """
import sys, time, pathlib
pathlib.Path(sys.argv[1]).open("a").write(f"{{(sys.argv[2:] or ['ran'])[0]}}\\n")
time.sleep({wait})
sys.exit({code})
"""


class Ready:
    """A home with one schedule whose last tick is due; the next one is a year away, however slow the machine.

    `warnings` is what its schedulers warned of.
    """

    def __init__(self, folder: Path) -> None:
        self.home = Home.at(folder / "home")
        self.home.path.mkdir()
        self.database = opened(self.home).database
        self.marks = folder / "marks"
        self.warnings: list[str] = []
        plan = folder / "plan.yaml"
        plan.write_text("version: 1")
        due = datetime.now(UTC) - timedelta(minutes=1)
        scheduling.add(self.database, "often", plan, f"{due.minute} {due.hour} {due.day} {due.month} *")
        with self.database.begin() as conn:
            conn.execute(update(schedules).values(created_at=due.timestamp() - 61))

    def scheduler(self, wait: float = 0, code: int = 0) -> tuple[Scheduler, list[Firing]]:
        heard: list[Firing] = []
        made = Scheduler(self.home, heard.append, self.warnings.append)
        command = [sys.executable, "-c", CHILD.format(wait=wait, code=code), str(self.marks)]
        made.command = lambda schedule, run_id: command  # type: ignore[method-assign]
        made.resumption = lambda run_id: [*command, "resumed"]  # type: ignore[method-assign]
        return made, heard

    @property
    def runs(self) -> int:
        return len(self.marks.read_text().splitlines()) if self.marks.exists() else 0


@pytest.fixture
def ready(tmp_path: Path) -> Ready:
    return Ready(tmp_path)


def until_over(scheduler: Scheduler, ready: Ready, limit_s: float = 20.0) -> list[Firing]:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        scheduler.look()
        told = scheduling.firings(ready.database)
        if told and all(firing.state != "RUNNING" for firing in told):
            return told
        time.sleep(0.05)
    raise AssertionError("the firing did not end")


def test_two_schedulers_fire_a_tick_once(ready: Ready) -> None:
    (one, _), (two, _) = ready.scheduler(), ready.scheduler()
    one.look()
    two.look()
    two.look()
    (firing,) = until_over(one, ready)
    assert firing.state == "SUCCEEDED"
    assert ready.runs == 1


def test_a_failed_run_is_recorded_with_its_exit_code(ready: Ready) -> None:
    scheduler, heard = ready.scheduler(code=3)
    (firing,) = until_over(scheduler, ready)
    assert firing.state == "FAILED"
    assert "exit code 3" in str(firing.note)
    assert [told.state for told in heard] == ["RUNNING", "FAILED"]


def test_a_firing_left_by_a_dead_scheduler_is_carried_on(ready: Ready) -> None:
    (schedule,) = scheduling.schedules(ready.database)
    tick = schedule.due(schedule.created_at, time.time())
    assert tick is not None
    run_id = schedule.run_id(tick)
    gone = Owner("a" * 16, "here", "elsewhere", 1, 1)
    with ready.database.begin() as conn:
        conn.execute(insert(scheduling_table()).values(**vars(Firing("often", tick, run_id, "RUNNING", tick))))
        claim = {"name": f"tick:{run_id}", "owner": str(gone), "fence": 1, "expires_at": time.time() - 1, "released": 0}
        conn.execute(insert(claims).values(**claim))
    scheduler, _ = ready.scheduler()
    assert until_over(scheduler, ready)[0].state == "SUCCEEDED"
    assert ready.runs == 1


def test_a_tick_that_comes_while_the_one_before_still_runs_is_skipped(ready: Ready) -> None:
    scheduler, _ = ready.scheduler(wait=30)
    scheduler.look()
    running = scheduling.firings(ready.database)[0]
    schedule: Schedule = scheduling.schedules(ready.database)[0]
    scheduler._fire(opened(ready.home), schedule, running.tick + 60)
    states: dict[float, Any] = {firing.tick: firing.state for firing in scheduling.firings(ready.database)}
    assert states == {running.tick: "RUNNING", running.tick + 60: "SKIPPED"}
    for fired in scheduler._running.values():
        assert fired.process is not None
        fired.process.kill()
        fired.process.wait()


def leave_a_firing(ready: Ready) -> str:
    """A firing that is RUNNING, of a scheduler that is gone; the id of its run."""
    (schedule,) = scheduling.schedules(ready.database)
    tick = schedule.due(schedule.created_at, time.time())
    assert tick is not None
    run_id = schedule.run_id(tick)
    with ready.database.begin() as conn:
        conn.execute(insert(scheduling_table()).values(**vars(Firing("often", tick, run_id, "RUNNING", tick))))
    return run_id


@contextmanager
def the_run(ready: Ready, run_id: str) -> Iterator[Run]:
    with start_run(ready.home, pipeline="adapt", locked={}, placement=Placement(ray="none"), run_id=run_id) as run:
        yield run


def test_a_run_that_ended_while_no_scheduler_was_up_is_noted_and_not_run_again(ready: Ready) -> None:
    run_id = leave_a_firing(ready)
    with the_run(ready, run_id):
        pass
    scheduler, _ = ready.scheduler()
    assert until_over(scheduler, ready)[0].state == "SUCCEEDED"
    assert ready.runs == 0


def test_a_run_that_failed_while_no_scheduler_was_up_is_noted_as_failed(ready: Ready) -> None:
    run_id = leave_a_firing(ready)
    with pytest.raises(DataError), the_run(ready, run_id):
        raise DataError("rows", "gone")
    scheduler, _ = ready.scheduler()
    (firing,) = until_over(scheduler, ready)
    assert (firing.state, ready.runs) == ("FAILED", 0)
    assert "run FAILED" in str(firing.note)


def test_a_run_that_outlived_its_scheduler_is_followed_to_its_end(ready: Ready) -> None:
    run_id = leave_a_firing(ready)
    scheduler, _ = ready.scheduler()
    with the_run(ready, run_id):
        for _ in range(3):
            scheduler.look()
        assert scheduling.firings(ready.database)[0].state == "RUNNING"
    assert until_over(scheduler, ready)[0].state == "SUCCEEDED"
    assert ready.runs == 0


def test_a_run_that_was_left_behind_is_taken_up(ready: Ready) -> None:
    run_id = leave_a_firing(ready)
    with pytest.raises(TemporaryError), the_run(ready, run_id):
        raise TemporaryError("world", "away")
    scheduler, _ = ready.scheduler(code=75)
    (firing,) = until_over(scheduler, ready)
    assert ready.marks.read_text() == "resumed\n"
    assert f"runs resume {run_id}" in str(firing.note), "one attempt a scheduler; the run stays resumable"


def test_a_run_that_was_left_behind_is_resumed_from_its_own_lock_and_not_begun_again(ready: Ready) -> None:
    made = Scheduler(ready.home, lambda firing: None, ready.warnings.append)
    (schedule,) = scheduling.schedules(ready.database)
    options = {"set": ["owner=a b"], "task": ["mood"], "cluster": ["none"]}
    home = ["--home", str(ready.home.path)]
    words = made.command(replace(schedule, options=options), "often-1")[3:]
    assert words[:4] == ["run", schedule.plan_path, "--run-id", "often-1"]
    assert words[4:] == ["--set", "owner=a b", "--task", "mood", "--cluster", "none", *home]
    assert made.resumption("often-1")[3:] == ["runs", "resume", "often-1", *home]


def another(ready: Ready, name: str, **changes: Any) -> None:
    """A second schedule that is due as the first is, with some columns of its row changed."""
    (first, *_) = scheduling.schedules(ready.database)
    scheduling.add(ready.database, name, Path(first.plan_path), first.cron)
    values = {"created_at": first.created_at, **changes}
    with ready.database.begin() as conn:
        conn.execute(update(schedules).where(schedules.c.name == name).values(values))


def test_a_firing_whose_directory_is_gone_has_failed_and_the_others_go_on(ready: Ready, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    another(ready, "early", options={"directory": gone})
    scheduler, heard = ready.scheduler()
    scheduler.look()
    (firing,) = scheduling.firings(ready.database, "early")
    assert firing.state == "FAILED"
    assert "could not be started" in str(firing.note) and gone in str(firing.note)
    assert [told.state for told in heard if told.schedule == "early"] == ["RUNNING", "FAILED"]
    assert is_free(ready.database, f"tick:{firing.run_id}")
    until_over(scheduler, ready)
    assert scheduling.firings(ready.database, "often")[0].state == "SUCCEEDED"


def test_a_firing_that_no_scheduler_could_start_does_not_end_the_next_one(ready: Ready, tmp_path: Path) -> None:
    leave_a_firing(ready)
    with ready.database.begin() as conn:
        conn.execute(update(schedules).values(options={"directory": str(tmp_path / "gone")}))
    scheduler, _ = ready.scheduler()
    (firing,) = until_over(scheduler, ready)
    assert (firing.state, ready.runs) == ("FAILED", 0)


def test_a_schedule_that_cannot_be_read_is_told_once_and_the_others_go_on(ready: Ready) -> None:
    another(ready, "early", timezone="Nowhere/Else")
    scheduler, _ = ready.scheduler()
    for _ in range(3):
        scheduler.look()
    (told,) = ready.warnings
    assert told.startswith("schedule early: ") and "Nowhere/Else" in told
    assert until_over(scheduler, ready)[0].state == "SUCCEEDED"


def test_aliases_that_cannot_be_kept_do_not_end_the_scheduler(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(database_url: str, tracking_url: str) -> None:
        raise ConflictError("mood version 1", "MLflow has lost it")

    monkeypatch.setattr("petl_ray.scheduling.scheduler.reconcile", refuse)
    monkeypatch.setattr("petl_ray.scheduling.scheduler.RECONCILE_EVERY_S", -1.0)
    scheduler, _ = ready.scheduler()
    stop = threading.Event()
    going = threading.Thread(target=scheduler.run, args=(stop, 0.05))
    going.start()
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not any(one.ended_at for one in scheduling.firings(ready.database)):
            time.sleep(0.05)
    finally:
        stop.set()
        going.join(20)
    assert scheduling.firings(ready.database)[0].state == "SUCCEEDED"
    assert ready.warnings == ["MLflow's aliases: mood version 1: MLflow has lost it."]


def scheduling_table() -> Any:
    from petl_ray.store.tables import firings

    return firings
