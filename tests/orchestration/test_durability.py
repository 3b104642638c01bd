"""The laws of durability, kept by real processes that are killed, stopped and raced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from petl_ray.orchestration import Home, records, runs, start_run
from petl_ray.orchestration.home import opened
from petl_ray.store.tables import facts, steps
from tests.orchestration.conftest import HERE
from tests.orchestration.driver import slow, story
from tests.orchestration.verbs import lines

Drives = Callable[..., "subprocess.Popen[str]"]

KILLS = [
    "count:submitted",
    "count:claimed",
    "count:before-manifest",
    "count:after-manifest",
    "count:after-record",
    "count:after-journal",
    "climb:in-rung:2",
    "climb:after-rung:2",
    "climb:mid-progress:2",
    "climb:after-progress:3",
    "climb:after-record",
    "count:after-manifest:2",
    "count:after-record:3",
    "count:after-manifest:4",
    "greet:before-manifest",
    "greet:after-record",
]


@pytest.fixture
def tally(tmp_path: Path) -> str:
    return str(tmp_path / "tally")


@pytest.fixture
def drive(tmp_path: Path, tally: str) -> Drives:
    """Starts a driver process on `home`."""

    def begin(home: Home, *options: str, fault: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.orchestration.driver", str(home.path), tally, *options]
        command += ["--database", home.database_url]
        environment = {**os.environ, "PETL_RAY_FAULT": fault}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )

    return begin


def until(condition: Callable[[], object]) -> None:
    """Wait for something that must happen; a test that waits for ever fails by this."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run that nobody killed."""
    root = tmp_path_factory.mktemp("undisturbed")
    home = Home.at(root / "home")
    with start_run(home, pipeline="test", locked={"plan": "story"}, placement=HERE) as run:
        return story(run, str(root / "tally"))


def recorded_rounds(home: Home) -> list[str]:
    with opened(home).database.read() as conn:
        return [key.replace("/", "-") for key in conn.execute(select(facts.c.key)).scalars()]


def words(home: Home, names: set[str]) -> list[str]:
    """What the executions of these steps tally."""
    with opened(home).database.read() as conn:
        rows = conn.execute(select(steps).where(steps.c.name.in_(names))).all()
    return [f"{row.verb}-{row.question['spec']['number']}" for row in rows if row.verb != "climb"]


def committed(home: Home) -> set[str]:
    keys = opened(home).store.list("steps/")
    return {key.split("/")[1] for key in keys if key.endswith("/record.json")}


@pytest.mark.parametrize("fault", KILLS)
def test_a_killed_run_ends_like_an_undisturbed_one_and_redoes_nothing(
    home: Home, tally: str, drive: Drives, undisturbed: str, fault: str
) -> None:
    killed = drive(home, fault=fault)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    (before,) = runs.ls(home)
    assert before["state"] == "RESUMABLE"
    standing, rounds, tallied = committed(home), recorded_rounds(home), Counter(lines(tally))
    attempts = {name: records.find(opened(home).store, name) for name in standing}
    with start_run(home, pipeline="test", locked={"plan": "story"}, placement=HERE) as run:
        assert story(run, tally) == undisturbed
    assert run.id == before["id"]
    assert {name: records.find(opened(home).store, name) for name in standing} == attempts
    now = Counter(lines(tally))
    assert all(now[one] == tallied[one] for one in rounds), "a recorded round was done again"
    shown = runs.show(home, run.id)
    assert shown["state"] == "SUCCEEDED"
    assert {one["state"] for one in shown["steps"]} == {"SUCCEEDED"}
    spoken = [word for word in words(home, standing) if now[word] != tallied[word]]
    assert spoken == [], "a committed step was computed again"
    assert max(number for word, number in now.items() if not word.startswith("pack")) <= 2


def test_of_two_runs_that_want_the_same_step_one_computes_and_one_waits(
    either_home: Home, tally: str, drive: Drives
) -> None:
    first = drive(either_home, "--seconds", "0.2")
    until(lambda: lines(tally))
    with start_run(either_home, pipeline="test", locked={"plan": "other"}, placement=HERE) as run:
        mine = slow(run, tally, 0.2)
    told, _ = first.communicate(timeout=60)
    assert told.strip() == mine
    assert lines(tally) == [f"round-{number}" for number in range(6)]
    assert runs.show(either_home, run.id)["steps"][0]["hit"] is True
    assert [one["event"] for one in runs.events(either_home, run.id)].count("step.waiting") == 1


def test_a_dead_neighbours_step_is_taken_over_at_once(home: Home, tally: str, drive: Drives) -> None:
    first = drive(home, "--seconds", "0.3", "--lasts", "3600")
    until(lambda: len(lines(tally)) >= 2)
    first.kill()
    first.wait()
    rounds = recorded_rounds(home)
    with start_run(home, pipeline="test", locked={"plan": "other"}, placement=HERE) as run:
        slow(run, tally, 0.01)
    assert all(Counter(lines(tally))[one] == 1 for one in rounds)


def test_a_stale_owner_parks_and_only_one_outcome_is_committed(either_home: Home, tally: str, drive: Drives) -> None:
    stale = drive(either_home, "--seconds", "0.3", "--lasts", "1")
    until(lambda: len(recorded_rounds(either_home)) >= 2)
    os.kill(stale.pid, signal.SIGSTOP)
    try:
        with start_run(either_home, pipeline="test", locked={"plan": "other"}, placement=HERE, lasts_s=1.0) as run:
            mine = slow(run, tally, 0.02)
        seen = Counter(lines(tally))
        (name,) = committed(either_home)
        standing = records.find(opened(either_home).store, name)
    finally:
        os.kill(stale.pid, signal.SIGCONT)
    told, _ = stale.communicate(timeout=60)
    assert stale.returncode == 0
    assert told.strip() == mine
    assert Counter(lines(tally)) == seen, "the stale owner went on working"
    assert records.find(opened(either_home).store, name) == standing
    parked = next(one["id"] for one in runs.ls(either_home) if one["id"] != run.id)
    assert "step.parked" in [one["event"] for one in runs.events(either_home, parked)]


def test_an_interrupted_driver_leaves_a_resumable_run(home: Home, tally: str, drive: Drives) -> None:
    first = drive(home, "--seconds", "0.3", "--plan", "slow")
    until(lambda: lines(tally))
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) != 0
    (before,) = runs.ls(home)
    assert before["state"] == "RESUMABLE"
    with start_run(home, pipeline="test", locked={"plan": "slow"}, placement=HERE) as run:
        slow(run, tally, 0.01)
    assert run.id == before["id"]
    assert runs.show(home, run.id)["state"] == "SUCCEEDED"
