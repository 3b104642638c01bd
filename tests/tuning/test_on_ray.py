"""Searches under a real Ray Tune, with the miniature training room behind real pack actors."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray.air.execution._internal import RayActorManager

from petl_ray.artifact import Trial
from petl_ray.errors import ClaimLost, PermanentError, PlanError, RunCancelled
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.on_ray import Judge, _stopper, _times, search_all
from petl_ray.tuning.packs import on_ray
from petl_ray.tuning.race import open_race
from petl_ray.verb import Question, Resources
from tests.plainstep import PlainStep
from tests.tuning.fake_training import train
from tests.tuning.fake_training.asking import ask, rows
from tests.tuning.fake_training.spec import Lora, MiniSpec
from tests.tuning.searches import DiesAfter, Killed, assert_same_search, others_hold, packs, run, rungs, table, taken_up

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_several_searches_share_one_run_and_end_as_each_would_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[on_ray.Packs] = []
    ask_for_one = on_ray.Packs._open

    def count(room: on_ray.Packs) -> None:
        asked.append(room)
        ask_for_one(room)

    monkeypatch.setattr(on_ray.Packs, "_open", count)
    steps = [PlainStep(tmp_path / name) for name in "abc"]
    specs = [
        ask(),
        ask(MiniSpec(metric="loss"), scheduler="median"),
        ask(algorithm="random", scheduler="none", trials=3),
    ]
    questions = [
        Question(name, spec, (rows(step, name),)) for name, spec, step in zip("abc", specs, steps, strict=True)
    ]
    found = list(dict(search_all(questions, steps, train=train)).values())
    assert [trial.trials for trial in found if isinstance(trial, Trial)] == [8, 8, 3]
    assert len(asked) == 1, "all three trained in one process"
    for step, trial in zip(steps, found, strict=True):
        assert isinstance(trial, Trial)
        lines = table(step, trial)
        assert lines[0]["overrides"] == {} and lines[0]["scores"]["1.0"] == trial.default_score
        finals = [line["scores"]["1.0"] for line in lines if line["state"] == "finished"]
        assert trial.score == (min if trial.mode == "min" else max)(finals)
        assert {event for event, _ in step.events} == {"search.packs", "search.engine", "search.rung"}
        assert trial.about["trained_rungs"] == sum(len(line["scores"]) for line in lines) == len(rungs(step))
    alone = PlainStep(tmp_path / "alone")
    assert run(alone, specs[0], rows(alone, "a")).digest == found[0].digest
    assert all("seconds" not in json.dumps(table(step, trial)) for step, trial in zip(steps, found, strict=True))


def test_all_trials_of_a_search_and_its_replay_pass_through_a_process_a_slot_and_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = PlainStep(tmp_path, resources=Resources(slots=2))
    started: list[object] = []
    add = RayActorManager.add_actor

    def count(manager: RayActorManager, *args: object, **kwargs: object) -> object:
        started.append(kwargs["cls"])
        return add(manager, *args, **kwargs)

    monkeypatch.setattr(RayActorManager, "add_actor", count)
    spec, dataset = ask(trials=12), rows(step)
    for attempt in (1, 2):
        run(step, spec, dataset)
        assert len(started) == 3 * attempt


def test_placement_changes_no_outcome(tmp_path: Path) -> None:
    placements = [Resources(cpus=1, packs=1, slots=1), Resources(cpus=1, packs=2, slots=3)]
    steps = [PlainStep(tmp_path / str(index), resources=given) for index, given in enumerate(placements)]
    assert len({run(step, ask()).digest for step in steps}) == 1


@pytest.mark.parametrize("decisions", ["rung", pytest.param("async", marks=pytest.mark.long)])
def test_a_killed_search_trains_no_recorded_rung_again(
    tmp_path: Path, decisions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ask(decisions=decisions)
    whole = PlainStep(tmp_path / "whole")
    undisturbed = run(whole, spec)
    for left in (1, 8):
        monkeypatch.setattr(DiesAfter, "left", left)
        with pytest.raises(Killed):
            run(DiesAfter(tmp_path / "killed"), spec)
    resumed, before = taken_up(tmp_path / "killed", spec)
    assert before >= 9
    if decisions == "rung":  # as they come, a trial may be stopped before it needs all that was recorded of it
        assert resumed.about["replayed_rungs"] >= before
        assert_same_search(resumed, undisturbed)


@pytest.fixture
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left below it was left by this test."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


def left_behind() -> set[str]:
    files = {
        path.name
        for path in Path(tempfile.gettempdir()).iterdir()
        if path.name.startswith(("petl-ray-search-", "petl-ray-tune-"))
    }
    return files | {
        one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if "petl-ray-pack" in one["name"]
    }


@pytest.mark.usefixtures("own_scratch")
def test_a_search_that_is_all_recorded_trains_nothing_and_starts_no_pack(step: PlainStep) -> None:
    spec, dataset = ask(limits={"trained_share": 0.5}), rows(step)
    before = left_behind()
    first = run(step, spec, dataset)
    assert left_behind() <= before
    for entry in dataset.files:  # not even the rows are read again
        (step.root / "objects" / entry.sha256).unlink()
    again = run(step, spec, dataset)
    assert again.digest == first.digest and again.about["trained_rungs"] == 0


def test_a_trials_process_loads_no_torch(step: PlainStep, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one for every slot; what it took to load would be paid as often. Looked at as Tune has started them, after
    they have carried an order."""
    loaded: list[list[str]] = []
    result = Judge.on_trial_result

    def look_inside(judge: Judge, controller: Any, trial: Any, facts: dict[str, Any]) -> str:
        process = trial.temporary_state.ray_actor
        loaded.append(ray.get(process.__ray_call__.remote(lambda _: list(sys.modules)), timeout=60))
        return result(judge, controller, trial, facts)

    monkeypatch.setattr(Judge, "on_trial_result", look_inside)
    run(step, ask(trials=2))
    assert len(loaded) >= len(rungs(step)) > 0
    for modules in loaded:
        assert "petl_ray.tuning.on_ray" in modules
        assert not {"torch", "transformers", "peft", "bitsandbytes"} & set(modules)


@pytest.mark.parametrize("scheduler", ["asha", pytest.param("none", marks=pytest.mark.long)])
def test_asynchronous_decisions_are_tunes_own(step: PlainStep, scheduler: str) -> None:
    found = run(step, ask(decisions="async", scheduler=scheduler, trials=12))
    states = found.about["states"]
    assert sum(states.values()) == found.trials == 12
    assert table(step, found)[0]["state"] == "finished"
    assert ("stopped" in states) == (scheduler == "asha")


@pytest.mark.long
def test_tunes_median_rule_stops_who_is_worse_than_most_at_its_first_rung(step: PlainStep) -> None:
    """The last two are far worse than all before them, of whom six have come to an end when they begin."""
    good, bad = [0.002 + 0.0001 * index for index in range(8)], [1e-9, 1e-8]
    space = {"learning_rate": [*good, *bad]}
    found = run(step, ask(decisions="async", scheduler="median", algorithm="grid", space=space, trials=11))
    lines = table(step, found)
    rates = [line["overrides"].get("learning_rate") for line in lines]
    assert rates == [None, *good, *bad]
    assert [(line["state"], list(line["scores"])) for line in lines[-2:]] == [("stopped", ["0.125"])] * 2
    assert "finished" in [line["state"] for line in lines[1:-2]], "the rule stops nobody who leads"


def test_tunes_milestones_are_the_rungs_of_the_search_whatever_their_distances() -> None:
    spec = ask(decisions="async", rungs=(0.2, 0.5, 0.9, 1.0), reduction=3.0)
    stopper = _stopper(cast("Hunt", SimpleNamespace(spec=spec, race=open_race(spec, lambda number: None))))
    times = _times(spec)
    milestones = [time for time, _ in reversed(stopper._brackets[0]._rungs)]
    assert milestones[:3] == [times[share]["rung"] for share in (0.2, 0.5, 0.9)]


def test_a_grid_with_limits_rejects_and_says_why(step: PlainStep) -> None:
    spec = ask(algorithm="grid", space={"method.rank": [2, 4, 16, 32]}, trials=5, limits={"trained_share": 0.01})
    found = run(step, spec)
    lines = table(step, found)
    assert [line["state"] for line in lines if line["overrides"].get("method.rank") in (16, 32)] == ["rejected"] * 2
    assert found.trials == 3 and "1.6000%" in next(line["reason"] for line in lines if "reason" in line)


def test_what_diverges_or_does_not_fit_is_a_line_of_the_table(step: PlainStep) -> None:
    space = {"learning_rate": [1e-3, 5.0], "method.rank": [8, 666]}
    found = run(step, ask(space=space, algorithm="grid", trials=4, scheduler="none"))
    by_overrides = {json.dumps(line["overrides"], sort_keys=True): line for line in table(step, found)}
    assert by_overrides['{"learning_rate": 5.0, "method.rank": 8}']["state"] == "diverged"
    assert by_overrides['{"learning_rate": 0.001, "method.rank": 666}']["reason"].startswith("method.rank: got 666")


class Lost(PlainStep):
    def check(self) -> None:
        raise ClaimLost("another owner")


def test_each_question_fails_alone(tmp_path: Path) -> None:
    good, lost = PlainStep(tmp_path / "good"), Lost(tmp_path / "lost")
    others = [PlainStep(tmp_path / f"{index}") for index in range(4)]
    specs = [
        ask(space={"no.such.path": [1]}),
        ask(MiniSpec(learning_rate=3)),
        ask(MiniSpec(method=Lora(rank=999))),  # breaks as a bug would, at every try
        ask(),
    ]
    questions = [
        Question(str(index), spec, (rows(step),)) for index, (spec, step) in enumerate(zip(specs, others, strict=True))
    ]
    missing = others[3].root / "objects" / questions[3].inputs[0].file("train.jsonl").sha256
    missing.write_text("other bytes")
    questions += [Question("good", ask(), (rows(good),)), Question("lost", ask(), (rows(lost),))]
    found = list(dict(search_all(questions, [*others, good, lost], train=train)).values())
    kinds = [type(one).__name__ for one in found]
    assert kinds == ["PlanError", "TrainingError", "PermanentError", "CorruptionError", "Trial", "ClaimLost"]
    assert "ZeroDivisionError" in str(found[2]) and "4 times" in str(found[2])
    assert isinstance(found[0], PlanError) and isinstance(found[2], PermanentError)
    alone = PlainStep(tmp_path / "alone")
    assert run(alone, ask()).digest == found[4].digest


def test_a_cancelled_search_stops_with_trials_under_way(step: PlainStep) -> None:
    class Cancelled(PlainStep):
        def check(self) -> None:
            if rungs(self):
                raise RunCancelled(self.name)

    cancelled = Cancelled(step.root)
    with pytest.raises(RunCancelled):
        run(cancelled, ask(MiniSpec(pause_s=8.0)))
    assert len(rungs(cancelled)) <= 3


@pytest.mark.usefixtures("own_scratch")
def test_a_search_that_waits_for_its_first_pack_says_so_and_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(PlainStep):
        def check(self) -> None:
            if packs(self):
                raise RunCancelled(self.name)

    monkeypatch.setattr(on_ray, "_START_S", 0.5)
    step, before = Impatient(tmp_path), left_behind()
    with others_hold(2), pytest.raises(RunCancelled):
        run(step, ask(limits={"trained_share": 0.5}))
    assert step.events == [("search.packs", {"up": 0, "asked": 1})]
    assert left_behind() <= before


def test_a_waiting_trial_whose_process_dies_is_heard_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, result = [], Judge.on_trial_result

    def kill_what_waits(judge: Judge, controller: Any, trial: Any, facts: dict[str, Any]) -> str:
        said = result(judge, controller, trial, facts)
        if said == "NOOP" and len(killed) < 2:
            killed.append(trial.trial_id)
            ray.kill(trial.temporary_state.ray_actor)
        return said

    dies, whole = PlainStep(tmp_path / "dies"), PlainStep(tmp_path / "whole")
    monkeypatch.setattr(Judge, "on_trial_result", kill_what_waits)
    spec = ask(MiniSpec(pause_s=0.2), trials=4)
    found = run(dies, spec)
    monkeypatch.undo()
    assert len(killed) == 2
    heard = [(facts["trial"], facts["rung"]) for facts in rungs(dies)]
    assert len(heard) == len(set(heard))
    assert found.digest == run(whole, spec).digest
