"""What becomes of measurements: names that stay, bounds that do not go away, steps that were really taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows, step
from benchmarks.models import Rows, bank_of, bank_step, peft_step
from benchmarks.ours import trials_in
from benchmarks.quality import compared
from benchmarks.rows import Row, keep, kept
from benchmarks.search import Costs, best_score, cheaper, check_equal_work

TASKS = [task for task in ("trec", "sst2", "snips") for _ in range(3)]
NINE = [0.9, 0.8, 0.85, 0.9, 0.8, 0.85, 0.9, 0.8, 0.85]


def costs(task: str, reached: bool, ours: float = 10.0) -> Costs:
    spent = {"ours": ours, "full": 200.0, "asha": 50.0}
    return Costs(task, reached, spent, spent)


def winners(equal: list[float], spent: float = 5.0, wide: float = 8.0) -> list[Row]:
    scores = {"equal": equal, "whole": equal, "wide": NINE, "trainer": NINE}
    equal_row, whole_row, wide_row = compared(
        scores, {"equal": spent, "whole": spent, "wide": wide, "trainer": 10.0}, TASKS
    )
    assert (equal_row.ok, equal_row.interval) == (whole_row.ok, whole_row.interval)
    return [equal_row, wide_row]


def test_a_score_that_is_missed_takes_the_place_of_one_that_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    good = cheaper("64 configurations", "core-s", [costs("trec", True)], "full", 12.0, 30.0)
    bad = cheaper("64 configurations", "core-s", [costs("trec", False)], "full", 12.0, 30.0)
    assert (good.ok, good.ratio, good.note) == (True, 20.0, "")
    assert (bad.ok, bad.ratio, bad.note) == (False, 0.0, "not reached: trec")
    for row in (good, bad):
        keep(row, "search", {"cpu": "a box"})
    assert [row["ok"] for row in kept()] == [False]


def test_a_score_that_is_missed_is_not_ok_where_nothing_is_demanded() -> None:
    assert cheaper("trec", "core-s", [costs("trec", False)], "full").ok is False
    assert cheaper("trec", "core-s", [costs("trec", True)], "full").ok is None


def test_a_score_that_nobody_but_the_recipe_reached_is_told() -> None:
    trials = [{"number": 0, "share": 1.0, "score": 0.8}, {"number": 1, "share": 1.0, "score": 0.5}]
    stopped = {"number": 2, "share": 0.4, "score": 0.9}
    assert best_score({"trials": [*trials, stopped]}) == 0.8
    assert best_score({"trials": [*trials, stopped]}, tuned=True) == 0.5
    assert best_score({"trials": trials[:1]}, tuned=True) == 0.0
    lucky = replace(costs("sst2", True), by_recipe=True)
    assert cheaper("all", "core-s", [costs("trec", True), lucky], "full").note == "reached by the recipe alone: sst2"


def test_the_spread_of_costs_is_that_of_the_tasks() -> None:
    found = [costs("trec", True), costs("sst2", True, 20.0), costs("snips", True, 40.0)]
    assert cheaper("all", "core-s", found, "full").spread == pytest.approx((20 - 5) / 10)
    assert cheaper("all", "core-s", found[:1], "full").spread is None


def test_the_bound_of_quality_is_that_of_the_equal_search() -> None:
    equal, wide = winners(NINE)
    assert (equal.reach, equal.ok) == (-1.0, True)
    assert (wide.reach, wide.ok) == (None, None)
    worse, _ = winners([score - 0.02 for score in NINE])
    assert worse.ok is False and worse.figure == equal.figure
    unclear, _ = winners([score + gap for score, gap in zip(NINE, [0.1, -0.1, 0.0] * 3, strict=True)])
    assert unclear.ratio == pytest.approx(1.0) and unclear.ok is False


def test_a_budget_that_was_missed_is_not_ok_and_has_the_same_name() -> None:
    (equal, wide), (late, later) = winners(NINE), winners(NINE, spent=11.0, wide=12.0)
    assert (late.figure, later.figure) == (equal.figure, wide.figure)
    assert late.ok is False and later.ok is False
    assert "110%" in late.note and "over the budget" in later.note


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """The files of a search: a trial to the end, one stopped at its first rung, one that diverged before it."""
    trials: list[dict[str, Any]] = [
        {"number": 0, "overrides": {}, "state": "done", "scores": {"0.5": 0.7, "1.0": 0.9}},
        {"number": 1, "overrides": {"learning_rate": 0.1}, "state": "stopped", "scores": {"0.5": 0.6}},
        {"number": 2, "overrides": {"learning_rate": 1.0}, "state": "diverged", "scores": {}},
    ]
    timings: list[dict[str, Any]] = [
        {"number": 0, "rung": 0, "replayed": False, "seconds": 1.0, "steps": 25.0},
        {"number": 1, "rung": 0, "replayed": False, "seconds": 1.0, "steps": 25.0},
        {"number": 2, "rung": 0, "replayed": False, "seconds": 1.0},
        {"number": 0, "rung": 1, "replayed": False, "seconds": 1.0, "steps": 49.0},
    ]
    for name, lines in (("trials", trials), ("timings", timings)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_steps_of_ours_are_those_that_were_counted(search: Path) -> None:
    found = [(one["steps"], one["share"], one["score"]) for one in trials_in(search)]
    assert found == [(49, 1.0, 0.9), (25, 0.5, 0.6), (0, 0.0, 0.0)]


def test_ours_is_found_out_when_it_takes_fewer_steps(search: Path) -> None:
    ours = [{"trials": trials_in(search)[:1]}]
    rival = [{"trials": [{"score": 0.9, "steps": 50.0, "share": 1.0}]}]
    with pytest.raises(AssertionError, match=r"ours: took \{49\} steps, not 50"):
        check_equal_work({"trainer": rival, "ours": ours}, 50, 1)
    rival[0]["trials"][0]["steps"] = 49.0
    check_equal_work({"trainer": rival, "ours": ours}, 49, 1)


def test_a_step_behind_kept_states_is_the_step_from_the_beginning(minilm: str) -> None:
    data = Rows.of(2, 8)
    bank = bank_of("fp32", 1, step.UPPER)
    theirs = peft_step(data, False, like=bank, layers=step.UPPER)
    whole, kept_ = bank_step(bank_of("fp32", 1, step.UPPER), [data]), bank_step(bank, [data], kept=True)
    for _ in range(3):
        assert kept_() == pytest.approx(whole(), rel=1e-4) == pytest.approx(theirs(), rel=1e-3)


def test_kept_states_ask_for_a_frozen_layer(minilm: str) -> None:
    with pytest.raises(AssertionError, match="no layer is frozen"):
        bank_step(bank_of("fp32", 1), [Rows.of(2, 8)], kept=True)
