"""The quickstart with packs and without: what is written, what must be equal before a second is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import quickstart, rows
from benchmarks.quickstart import ALONE, ONE_SLOT, PLAN, equal, measure, one_slot, outcome
from petl_ray.orchestration import load_placement
from petl_ray.plan import read_plan

SUMMARY: dict[str, Any] = {
    "tasks": [
        {"task": "mood", "status": "champion", "adapter_digest": "ab", "scores": {"tuned": {"value": 0.9, "low": 0.8}}},
        {"task": "time", "status": "refused", "adapter_digest": "cd", "scores": {"tuned": {"value": 0.5, "low": 0.4}}},
    ],
    "samples": {"mood": {"label": "good"}},
}


def facts(wall_s: float, **changes: Any) -> dict[str, Any]:
    return {"wall_s": wall_s, "cpu_s": 2 * wall_s, **outcome(SUMMARY), **changes}


def test_without_packs_every_process_has_one_slot_and_nothing_else_changes(tmp_path: Path) -> None:
    shipped, alone = load_placement(quickstart.PLACE), load_placement(one_slot(tmp_path))
    for verb in ONE_SLOT:
        mine, other = alone.verbs[verb], shipped.verbs.get(verb, shipped.default)
        assert mine.slots == 1 and mine.model_copy(update={"slots": other.slots}) == other
    assert alone.verbs.keys() == shipped.verbs.keys()
    assert alone.model_copy(update={"verbs": {}}) == shipped.model_copy(update={"verbs": {}})


def test_the_setting_is_one_of_the_plans_and_asks_for_the_same_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quickstart.ROOT)
    shipped, alone = read_plan(PLAN, (), ()), read_plan(PLAN, (ALONE,), ())
    for name, task in alone.tasks.items():
        assert task.search is not None and task.search.engine == "solo"
        other = shipped.tasks[name].search
        assert other is not None and other.engine == "auto"
        assert task.search.model_dump(exclude={"engine"}) == other.model_dump(exclude={"engine"})


def test_equal_outcomes_are_told_and_others_refused() -> None:
    assert equal([facts(1.0), facts(2.0)]) == "equal scores, adapters of equal digests"
    assert equal([facts(1.0), facts(2.0, adapters={})]) == "equal scores, adapters of unequal digests"
    with pytest.raises(AssertionError, match="do not come to the same"):
        equal([facts(1.0), facts(2.0, scores={"mood/tuned": 0.91, "time/tuned": 0.5})])
    with pytest.raises(AssertionError, match="other scores"):
        equal([facts(1.0), facts(2.0, scores={"mood/tuned": 0.9})])
    with pytest.raises(AssertionError, match="not all champions answer"):
        equal([facts(1.0), facts(2.0, answers=[])])


def test_the_row_has_both_contestants_and_takes_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    asked: list[str] = []

    def ran(name: str) -> dict[str, Any]:
        asked.append(name)
        return facts({"packs": 200.0, "alone": 300.0}[name])

    monkeypatch.setattr(quickstart, "_ran", ran)
    (row,) = measure(False, False, rounds=2)
    assert asked == ["packs", "alone", "alone", "packs"]
    assert (row.ours, row.baseline, row.ratio, row.ok) == (200.0, 300.0, 1.5, None)
    (again,) = measure(False, False)
    assert len(asked) == 4 and again.n == 1 and again.spread is None
