"""Steps as Ray tasks on a real cluster of two cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from petl_ray.errors import CapacityError, DataError, PermanentError, RunCancelled
from petl_ray.orchestration import Home, Placement, runs
from petl_ray.orchestration.placement import VerbResources
from petl_ray.telemetry import Event
from petl_ray.verb import Question
from tests.orchestration.conftest import Starts
from tests.orchestration.verbs import CountSpec, chatter, climb, count, crash, lines, nest

ON_RAY = Placement(name="test-ray", ray="auto", cpus=2)

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def tally(tmp_path: Path) -> str:
    return str(tmp_path / "tally")


def test_the_worker_that_did_the_work_commits_it(start: Starts, tally: str) -> None:
    with start(placement=ON_RAY) as run:
        outcome = run.make(count, CountSpec(number=3, tally=tally))
        assert outcome.about["pid"] != os.getpid()
    with start(locked={"plan": 2}) as here:
        assert here.make(count, CountSpec(number=3, tally=tally)) == outcome
    assert lines(tally) == ["count-3"]
    (step,) = runs.show(run.home, run.id)["steps"]
    assert (step["state"], step["attempts"], step["hit"]) == ("SUCCEEDED", 1, False)


def test_the_misses_of_a_pack_are_dealt_out_to_as_many_packs_as_the_placement_says(start: Starts, tally: str) -> None:
    two = ON_RAY.model_copy(update={"verbs": {"count": VerbResources(packs=2)}})
    with start(placement=two) as run:
        questions = [Question(f"q{number}", CountSpec(number=number, tally=tally, meets=2)) for number in range(5)]
        outcomes = run.pack(count, questions)
    assert sorted(outcomes) == [f"q{number}" for number in range(5)]
    assert sorted(word for word in lines(tally) if word.startswith("pack")) == ["pack-of-2"] * 2 + ["pack-of-3"] * 3
    assert len({outcome.about["pid"] for outcome in outcomes.values()}) == 2


def test_an_error_comes_back_as_itself(start: Starts) -> None:
    with start(placement=ON_RAY) as run:
        with pytest.raises(DataError) as caught:
            run.make(count, CountSpec(number=1, fail="permanent"))
        with pytest.raises(PermanentError, match="KeyError"):
            run.make(count, CountSpec(number=1, fail="surprise"))
    assert type(caught.value) is DataError
    assert caught.value.do == "Add one"


def test_what_can_never_start_is_refused_before_it_starts(start: Starts, home: Home) -> None:
    greedy = ON_RAY.model_copy(update={"verbs": {"count": VerbResources(cpus=64)}})
    with pytest.raises(CapacityError, match="64"), start(placement=greedy) as run:
        run.make(count, CountSpec(number=1))
    assert runs.show(home, run.id)["steps"] == []


def test_what_no_single_machine_can_hold_is_refused_before_it_starts(
    start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 2.0}} for name in "abcd"]
    monkeypatch.setattr(ray, "nodes", lambda: small)
    wide = ON_RAY.model_copy(update={"verbs": {"count": VerbResources(cpus=8)}})
    with pytest.raises(CapacityError, match="the largest machine has 2"), start(placement=wide) as run:
        run.make(count, CountSpec(number=1))


def test_a_step_that_drives_ray_reserves_no_core(start: Starts, tally: str) -> None:
    with start(placement=ON_RAY) as run:
        items = {str(number): CountSpec(number=number, tally=tally) for number in range(3)}
        assert len(run.each(lambda spec: run.make(nest, spec), items)) == 3
    assert lines(tally) == ["nested"] * 3


def test_a_lost_worker_is_no_state_of_the_run(start: Starts, home: Home, tally: str) -> None:
    with start(placement=ON_RAY, lasts_s=600.0) as run:
        run.make(crash, CountSpec(number=1, tally=tally, busy_times=2))
    assert len(lines(tally)) == 3
    (step,) = runs.show(home, run.id)["steps"]
    assert (step["state"], step["attempts"]) == ("SUCCEEDED", 3)


def test_what_workers_print_is_in_the_log_and_their_events_reach_the_driver(
    start: Starts, home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[Event] = []
    with start(placement=ON_RAY, on_event=heard.append) as run:
        run.make(chatter, CountSpec(number=4))
    printed = capfd.readouterr()
    assert "chatter" not in printed.out + printed.err
    (log,) = runs.logs(home, run.id).values()
    assert "chatter from python" in log
    assert "chatter from below" in log
    names = [event.event for event in heard]
    assert [name for name in names if name.startswith(("step", "chat"))] == ["step.start", "chat.word", "step.done"]
    assert {"word": "hello", "number": 4, "label": "chatter"}.items() <= heard[names.index("chat.word")].facts.items()


def test_a_cancelled_run_stops_its_workers(start: Starts, home: Home, tally: str) -> None:
    def cancel_soon() -> None:
        while not lines(tally):
            time.sleep(0.05)
        runs.cancel(home, runs.ls(home)[0]["id"])

    canceller = threading.Thread(target=cancel_soon)
    canceller.start()
    with pytest.raises(RunCancelled), start(placement=ON_RAY, lasts_s=2.0) as run:
        run.make(climb, CountSpec(number=1, rounds=200, seconds=0.1, tally=tally))
    canceller.join()
    assert runs.show(home, run.id)["state"] == "CANCELLED"
    quiet(lambda: len(lines(tally)))


def test_hits_and_plain_effects_need_no_ray(start: Starts, home: Home, tally: str) -> None:
    with start() as run:
        run.make(count, CountSpec(number=3))
    program = f"""
import sys
from petl_ray.orchestration import Home, Placement, start_run
from tests.orchestration.verbs import CountSpec, count, greet
with start_run(Home.at({str(home.path)!r}), pipeline="p", locked={{}}, placement=Placement(ray="local")) as run:
    run.do(greet, CountSpec(number=1, tally={tally!r}), run.make(count, CountSpec(number=3)))
import ray
assert not ray.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert lines(tally) == ["greet-1"]


def quiet(measure: Callable[[], int]) -> None:
    """Wait until nothing is added for a second; fails if that never comes."""
    for _ in range(30):
        before = measure()
        time.sleep(1)
        if measure() == before:
            return
    raise AssertionError("the worker went on working")
