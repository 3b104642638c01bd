"""Drivers that want the same at the same time, drivers that were away for too long, workers that die."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from petl_ray.errors import ClaimLost
from petl_ray.orchestration import Home, runs
from tests.chaos.conftest import Site
from tests.chaos.driving import Driver, Drivers
from tests.chaos.plans import write_plan
from tests.chaos.reading import (
    assert_finished_like,
    assert_nothing_lost,
    assert_nothing_lost_or_redone,
    expired,
    kept,
    outcomes,
    shown_steps,
    the_run,
    times_computed,
    told,
)

pytestmark = pytest.mark.long


def test_of_two_runs_that_want_the_same_steps_one_computes_and_one_waits(
    joining: Drivers, site: Site, home: Home, undisturbed: dict[str, str]
) -> None:
    plans = [write_plan(site.directory, site.base, name) for name in ("one", "other")]
    both = [joining.start(plan, home.path, site.in_process) for plan in plans]
    assert [driver.wait() for driver in both] == [0, 0], "\n".join(driver.said for driver in both)
    found = [one["id"] for one in runs.ls(home)]
    assert [outcomes(home, one) for one in found] == [undisturbed, undisturbed]
    assert set(times_computed(home).values()) == {1}, "a step was computed twice"
    assert told(home, "step.waiting") > 0
    now = kept(home)
    assert now.versions == {"petl-ray.mood": ["1"], "petl-ray.time": ["1"]}
    assert {version for _, _, version in now.promotions.values()} == {1}
    rungs = told(home, "search.rung")
    assert rungs == len(now.rungs), "a rung was trained twice"


def stop_between_writes(driver: Driver, home: Home) -> None:
    """SIGSTOP while it holds no lock of SQLite: a process stopped in a write would lock everybody out."""

    def stopped() -> bool:
        os.kill(driver.process.pid, signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(home.path / "journal.db", timeout=0.5)) as journal:
            try:
                journal.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(driver.process.pid, signal.SIGCONT)
                return False
            journal.rollback()
            return True

    driver.until(stopped)


def test_a_driver_that_was_stopped_for_too_long_parks_and_commits_nothing(
    joining: Drivers, site: Site, home: Home, undisturbed: dict[str, str]
) -> None:
    stale = joining.start(site.plan, home.path, site.in_process)
    stale.until(lambda: (home.path / "journal.db").exists() and bool(kept(home).rungs))
    stop_between_writes(stale, home)
    run_id = the_run(home)["id"]
    stale.until(lambda: expired(home, f"run:{run_id}"))
    before = kept(home)
    fresh = joining.run(site.plan, home.path, site.in_process)
    assert fresh.process.returncode == 0, fresh.said
    assert_nothing_lost_or_redone(home, before)
    done = kept(home)
    os.kill(stale.process.pid, signal.SIGCONT)
    assert stale.wait() == ClaimLost.exit_code, stale.said
    assert the_run(home)["id"] == run_id
    assert kept(home).records == done.records
    assert_nothing_lost(home, done)
    assert set(times_computed(home).values()) == {1}, "the stale driver committed too"
    assert_finished_like(home, undisturbed)


@pytest.mark.parametrize("fault", ["train:after-progress:9", "search:after-rung:13", "prepare:after-manifest"])
def test_a_worker_that_dies_is_replaced_and_the_run_carries_on_by_itself(
    drivers: Drivers, site: Site, home: Home, undisturbed: dict[str, str], tmp_path: Path, fault: str
) -> None:
    died = tmp_path / "died"
    driver = drivers.run(site.plan, home.path, site.on_ray, fault, once=died)
    assert driver.process.returncode == 0, driver.said
    assert died.exists(), "no worker died"
    tried = [one["attempts"] for one in shown_steps(home, the_run(home)["id"]) if fault.startswith(one["verb"])]
    assert max(tried) == 2
    assert_finished_like(home, undisturbed)
