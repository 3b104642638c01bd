"""Questions are held against memory before they train, and what they took teaches later estimates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Adapter
from petl_ray.bank.memory import Machine
from petl_ray.errors import CapacityError, TemporaryError
from petl_ray.training import train
from petl_ray.verb import Question, Resources
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe

BY_MEMORY = Resources(packs=1, slots=8, slots_by_memory=True)


def told(step: PlainStep) -> list[dict[str, Any]]:
    return [facts for name, facts in step.events if name == "train.slots"]


@pytest.fixture
def small_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petl_ray.training.session.machine_here", lambda: Machine("cpu", 4e9, 3e9))


@pytest.mark.usefixtures("small_host")
def test_a_batch_that_does_not_fit_trains_alone_where_a_row_does(tiny_bert: Path, tmp_path: Path) -> None:
    """What memory cannot hold is cut as it runs out; slots that are placed in numbers are left at that."""
    for name, given in (("by-memory", BY_MEMORY), ("fixed", replace(BY_MEMORY, slots_by_memory=False))):
        step = PlainStep(tmp_path / name, resources=given)
        spec = recipe(locked(tiny_bert), epochs=0.5, batch_size=65536, max_length=64)
        adapter = train(spec, dataset(step), step=step)
        assert [event["slots"] for event in told(step)] == ([1] if given.slots_by_memory else [])
        assert all("it trains alone, in smaller passes" in event["why"] for event in told(step))
        memory = adapter.about["memory"]
        assert memory["state_bytes"] < memory["estimated_bytes"] < 100e6 < 4e9  # of the passes that were made


@pytest.mark.usefixtures("small_host")
def test_all_questions_of_a_training_are_held_against_memory(tiny_bert: Path, tmp_path: Path) -> None:
    """One of which not even a row fits fails alone; who trains is told how many share the process."""
    base = locked(tiny_bert)
    specs = [recipe(base, epochs=0.5), recipe(base, epochs=0.5, batch_size=65536, max_length=1 << 20)]
    steps = [PlainStep(tmp_path / str(index), resources=BY_MEMORY) for index in range(2)]
    questions = [
        Question(str(at), spec, (dataset(step),)) for at, (spec, step) in enumerate(zip(specs, steps, strict=True))
    ]
    answers = dict(train.answer_all(questions, steps))
    assert isinstance(answers[1], CapacityError) and "does not fit" in str(answers[1]) and not steps[1].events
    (event,) = told(steps[0])
    assert event["slots"] == 2 and event["why"].startswith("2 slots of") and event["calibration"] == "not calibrated"
    assert isinstance(answers[0], Adapter)
    known = {**answers[0].about["memory"], "run": "run-1"}
    again = PlainStep(tmp_path / "again", resources=replace(BY_MEMORY, slots=1), memories={"memory": [known]})
    train(specs[0], dataset(again), step=again)
    assert told(again)[0]["calibration"].startswith("calibrated from 1 run (x ")


def test_memory_that_others_hold_today_is_waited_for(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the packs of a driver that was killed are yet to end: that is no verdict on the question."""
    monkeypatch.setattr("petl_ray.training.session.machine_here", lambda: Machine("cpu", 4e9, 1e5))
    step = PlainStep(tmp_path, resources=BY_MEMORY)
    with pytest.raises(TemporaryError, match="others hold the rest of this machine now") as raised:
        train(recipe(locked(tiny_bert), epochs=0.5), dataset(step), step=step)
    assert raised.value.delay_s >= 10
    monkeypatch.setattr("petl_ray.training.session.machine_here", lambda: Machine("cpu", 1e5, 1e5))
    with pytest.raises(CapacityError, match="does not fit"):
        train(recipe(locked(tiny_bert), epochs=0.5), dataset(step), step=step)


class Forgets(PlainStep):
    """A step whose journal is away."""

    def remembered(self, what: str) -> list[Any]:
        raise TemporaryError("the journal", "is away")


@pytest.mark.usefixtures("small_host")
def test_a_training_is_held_against_memory_where_nobody_remembers(tiny_bert: Path, tmp_path: Path) -> None:
    step = Forgets(tmp_path, resources=BY_MEMORY)
    train(recipe(locked(tiny_bert), epochs=0.5), dataset(step), step=step)
    assert [event["calibration"] for event in told(step)] == ["not calibrated"]
