"""From the beginning of a run to its end, and what people can ask about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from petl_ray.errors import ClaimLost, ConflictError, DataError, NotFoundError, RunCancelled
from petl_ray.orchestration import Home, Placement, runs, start_run
from petl_ray.orchestration.claims import take
from petl_ray.orchestration.home import opened
from petl_ray.orchestration.owner import Owner
from petl_ray.telemetry import Event
from tests.orchestration.conftest import HERE, Starts, starter
from tests.orchestration.verbs import CountSpec, climb, count, lines


def test_a_run_that_ends_well_has_succeeded_and_keeps_its_summary(either_home: Home) -> None:
    with starter(either_home)(plan={"tasks": ["a"]}, owner="ada") as run:
        run.make(count, CountSpec(number=1))
        run.summary = {"best": "a"}
    (told,) = runs.ls(either_home)
    assert (told["id"], told["state"], told["owner"], told["steps"]) == (run.id, "SUCCEEDED", "ada", {"SUCCEEDED": 1})
    assert runs.show(either_home, run.id)["summary"] == {"best": "a"}


def test_the_same_locked_plan_attaches_to_a_resumable_run_and_another_does_not(either_home: Home) -> None:
    start = starter(either_home)
    with pytest.raises(KeyboardInterrupt), start() as first:
        first.make(count, CountSpec(number=1))
        raise KeyboardInterrupt
    assert runs.show(either_home, first.id)["state"] == "RESUMABLE"
    with start(locked={"plan": "other"}) as other:
        assert other.id != first.id
    with start() as again:
        assert again.id == first.id
        again.make(count, CountSpec(number=2))
    positions = [one["position"] for one in runs.show(either_home, first.id)["steps"]]
    assert positions == [0, 1]
    with start() as third:
        assert third.id != first.id


def test_a_run_id_is_never_run_twice_at_a_time_nor_with_another_plan(either_home: Home) -> None:
    start = starter(either_home)
    with start(run_id="nightly-1") as run:
        assert runs.show(either_home, run.id)["state"] == "RUNNING"
        with pytest.raises(ConflictError, match="is running it"), start(run_id="nightly-1"):
            pass
    with pytest.raises(ConflictError, match="SUCCEEDED"), start(run_id="nightly-1"):
        pass
    with pytest.raises(ConflictError, match="another plan"), start(run_id="nightly-1", locked={"plan": 7}):
        pass


def test_a_failed_run_may_be_taken_up_by_its_id(start: Starts, home: Home) -> None:
    with pytest.raises(DataError), start(run_id="r") as run:
        run.make(count, CountSpec(number=1, fail="permanent"))
    told = runs.show(home, "r")
    assert (told["state"], told["error"]["kind"]) == ("FAILED", "DataError")
    assert told["steps"][0]["error"]["do"] == "Add one"
    assert runs.resume_info(home, "r")["locked"] == {"plan": 1}
    with start(run_id="r") as run:
        run.make(count, CountSpec(number=1))
    assert runs.show(home, "r")["state"] == "SUCCEEDED"
    with pytest.raises(ConflictError):
        runs.resume_info(home, "r")


def test_a_cancelled_run_stops_at_its_next_check_and_one_without_driver_at_once(start: Starts, home: Home) -> None:
    with pytest.raises(RunCancelled), start(lasts_s=1.0) as run:
        runs.cancel(home, run.id)
        run.make(climb, CountSpec(number=1, rounds=500, seconds=0.05))
    told = runs.show(home, run.id)
    assert (told["state"], told["steps"][0]["state"]) == ("CANCELLED", "CANCELLED")
    with pytest.raises(KeyboardInterrupt), start(locked={"plan": 2}) as left:
        raise KeyboardInterrupt
    assert runs.cancel(home, left.id)["state"] == "CANCELLED"
    with pytest.raises(ConflictError):
        runs.cancel(home, left.id)


def test_a_driver_whose_run_was_taken_parks_and_writes_nothing_more(start: Starts, home: Home) -> None:
    database = opened(home).database
    with pytest.raises(ClaimLost), start(lasts_s=0.5) as run:
        name = f"run:{run.id}"
        run._pulse.unwatch([run._claim])  # as if this process had been stopped
        while name not in (found := _take(home, name)):
            pass
        run._pulse.watch([run._claim])
        while not run._claim.lost.is_set():
            run._pulse.cancelled.wait(0.05)
        run.make(count, CountSpec(number=1))
    assert runs.show(home, run.id)["state"] == "RUNNING"
    with database.begin() as conn:
        found[name].check(conn)


def _take(home: Home, name: str) -> dict[str, object]:
    database = opened(home).database
    with database.begin() as conn:
        return dict(take(database, conn, [name], Owner.new(), 60.0))


def test_a_listener_hears_every_event_once_and_in_order(either_home: Home) -> None:
    heard: list[Event] = []
    with starter(either_home)(on_event=heard.append) as run:
        run.make(count, CountSpec(number=1))
        run.make(count, CountSpec(number=1))
    names = [event.event for event in heard]
    assert names == ["run.start", "step.start", "step.done", "step.hit", "run.end"]
    assert [one["event"] for one in runs.events(either_home, run.id)] == names


def test_an_old_outcome_may_be_adopted_for_a_new_question(start: Starts, home: Home, tmp_path: Path) -> None:
    tally = str(tmp_path / "tally")
    with start() as run:
        old = run.make(count, CountSpec(number=1, tally=tally))
    with pytest.raises(DataError), start(locked={"plan": 2}) as run:
        run.make(count, CountSpec(number=2, fail="permanent"))
    old_name = runs.show(home, runs.ls(home)[1]["id"])["steps"][0]["name"]
    new_name = runs.show(home, run.id)["steps"][0]["name"]
    assert runs.adopt(home, old_name[:16], new_name, "the number never mattered")["outcome_digest"] == old.digest
    with start(locked={"plan": 3}) as run:
        assert run.make(count, CountSpec(number=2, fail="permanent")) == old
    with pytest.raises(ConflictError, match="outcome of its own"):
        runs.adopt(home, old_name, new_name, "again")
    with pytest.raises(NotFoundError):
        runs.adopt(home, "f" * 64, "e" * 64, "nobody")
    assert lines(tally) == ["count-1"]


def test_unknown_runs_and_steps_are_named_with_what_to_do(start: Starts, home: Home) -> None:
    with pytest.raises(NotFoundError, match="runs ls"):
        runs.show(home, "nobody")
    with start() as run:
        run.make(count, CountSpec(number=1))
    assert runs.show(home, run.id[:12])["id"] == run.id
    with pytest.raises(NotFoundError, match="runs show"):
        runs.logs(home, run.id, "nothing")


def test_the_placement_is_kept_for_a_resume_and_bears_no_identity(home: Home) -> None:
    wide = Placement(name="wide", ray="none", cpus=7)
    with pytest.raises(KeyboardInterrupt), start_run(home, pipeline="p", locked={}, placement=wide) as run:
        first = run.make(count, CountSpec(number=1))
        raise KeyboardInterrupt
    assert Placement.model_validate(runs.resume_info(home, run.id)["placement"]) == wide
    with start_run(home, pipeline="p", locked={}, placement=HERE) as again:
        assert again.id == run.id
        assert again.make(count, CountSpec(number=1)) == first
