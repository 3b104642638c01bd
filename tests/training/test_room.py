"""Questions are held against memory before they train, and what they took teaches later estimates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from petl_ray.artifact import Adapter
from petl_ray.errors import CapacityError
from petl_ray.training import train
from petl_ray.verb import Question, Resources
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe

BY_MEMORY = Resources(packs=1, slots=8, slots_by_memory=True)


def told(step: PlainStep) -> list[dict[str, Any]]:
    return [facts for name, facts in step.events if name == "train.slots"]


def test_all_questions_of_a_training_are_held_against_memory(tiny_bert: Path, tmp_path: Path) -> None:
    """One that does not fit fails alone; who trains is told how many share the process."""
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
