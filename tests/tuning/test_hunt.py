"""One search and what it remembers, without Ray: what a machine ended is neither recorded nor told in its own words."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Dataset, Trial
from petl_ray.errors import CapacityError, PetlRayError, PlanError, TemporaryError
from petl_ray.tuning import SearchSpec
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.turns import plan_turns
from petl_ray.verb import Question, Resources
from tests.plainstep import PlainStep
from tests.tuning.fake_training.asking import ask, rows
from tests.tuning.fake_training.session import MiniSession

Facts = Callable[[int, int], dict[str, Any]]


def hunted(step: PlainStep, spec: SearchSpec) -> Hunt:
    dataset: Dataset = rows(step)
    return Hunt("q0", Question("mini", spec, (dataset,)), step)


def scored(number: int, rung: int) -> dict[str, Any]:
    return {"score": 0.5 + 0.01 * number + 0.1 * rung, "loss": 0.5}


def ride(hunt: Hunt, facts: Facts) -> Hunt:
    """Hear of every trial that is ready what `facts` says of its number and rung."""
    while not hunt.over:
        one = hunt.race.ready()[0]
        hunt.started(one)
        told = hunt.ledger.rungs(one.number).get(one.rung) or facts(one.number, one.rung)
        hunt.heard(one, told, None, None)
    return hunt


def fails_at(number: int, why: str, only_here: str = "memory") -> Facts:
    def facts(asked: int, rung: int) -> dict[str, Any]:
        return {"refused": why, "only_here": only_here} if asked == number else scored(asked, rung)

    return facts


@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_a_machine_without_room_for_trial_0_ends_this_attempt_and_not_the_next(tmp_path: Path, scheduler: str) -> None:
    spec, step = ask(scheduler=scheduler, algorithm="random"), PlainStep(tmp_path / "step")
    first = ride(hunted(step, spec), fails_at(0, "one row does not fit"))
    assert isinstance(first.outcome(), CapacityError) and "0/0" not in step.recorded()
    again, whole = ride(hunted(step, spec), scored), ride(hunted(PlainStep(tmp_path / "whole"), spec), scored)
    outcomes = [again.outcome(), whole.outcome()]
    assert isinstance(outcomes[0], Trial) and isinstance(outcomes[1], Trial)
    assert outcomes[0].digest == outcomes[1].digest


def test_in_a_population_others_that_a_machine_ended_are_recorded_since_copies_hang_on_who_was_there(
    step: PlainStep,
) -> None:
    hunt = ride(hunted(step, ask(scheduler="pbt", algorithm="random")), fails_at(3, "one row does not fit"))
    assert isinstance(hunt.outcome(), Trial) and step.recorded()["3/0"]["only_here"] == "memory"


@pytest.mark.parametrize(
    ("kind", "said"), [("memory", "no room on this machine"), ("fault", "its pass broke on this machine")]
)
def test_what_a_machine_says_of_its_process_is_in_the_trace_and_not_in_the_digest(
    tmp_path: Path, kind: str, said: str
) -> None:
    words = [f"CUDA out of memory. Process {number} has {number} MiB" for number in (4711, 815)]
    found, steps = [], [PlainStep(tmp_path / str(index)) for index in range(2)]
    for step, text in zip(steps, words, strict=True):
        outcome = ride(hunted(step, ask(algorithm="random")), fails_at(2, text, kind)).outcome()
        assert isinstance(outcome, Trial)
        found.append(outcome)
    assert found[0].digest == found[1].digest
    for step, trial, text in zip(steps, found, words, strict=True):
        directory = step.fetch(trial)
        table, times = ((directory / name).read_text().splitlines() for name in ("trials.jsonl", "timings.jsonl"))
        assert [json.loads(line).get("reason") for line in table if '"rejected"' in line] == [said]
        assert [json.loads(line).get("reason") for line in times if '"reason"' in line] == [text]


def test_a_question_that_makes_no_sense_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with pytest.raises(PlanError):
        hunted(PlainStep(tmp_path / "step"), ask(space={"no.such.path": [1]}))
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("base_bytes", "kind"), [(10**9, None), (6 * 10**9, TemporaryError), (6 * 10**10, CapacityError)]
)
def test_a_search_without_room_is_refused_for_good_only_where_the_machine_would_have_none_if_it_were_empty(
    step: PlainStep, base_bytes: int, kind: type[PetlRayError] | None
) -> None:
    """A machine of 10 GB, of which others leave 5."""
    hunt = hunted(step, ask())
    known = {"session": "mini", "base_bytes": base_bytes, "free_bytes": 5 * 10**9}
    figures = [{**MiniSession(1).footprint(order.spec(), 2), **known} for order in hunt.sizes()]
    turns = plan_turns([(hunt, len(figures))], figures, Resources(), 1)
    error = hunt.race.error
    assert turns.now == ([] if kind else [hunt])
    assert error is None if kind is None else (type(error) is kind and "does not fit into" in str(error))
    assert not isinstance(error, TemporaryError) or error.delay_s == 30
    hunt.close()
