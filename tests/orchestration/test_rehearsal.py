"""What a run would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petl_ray.artifact import Dataset
from petl_ray.orchestration import Home, rehearse
from petl_ray.verb import Question
from tests.orchestration.conftest import HERE, Starts
from tests.orchestration.verbs import CountSpec, count, greet, lines


def body(run: Any, first: int, tally: str) -> None:
    bases = run.each(lambda n: run.make(count, CountSpec(number=n, tally=tally)), {"a": first, "b": 2})
    tops = run.pack(count, [Question(key, CountSpec(number=9, tally=tally), (base,)) for key, base in bases.items()])
    run.do(greet, CountSpec(number=1, tally=tally), *tops.values())


def test_a_rehearsal_names_hits_misses_and_what_waits_for_them_and_executes_nothing(
    start: Starts, home: Home, tmp_path: Path
) -> None:
    tally = str(tmp_path / "tally")
    first = rehearse(home, HERE, lambda run: body(run, 1, tally))
    assert [(one.label, one.status, one.why) for one in first] == [
        ("count a", "miss", "first time"),
        ("count b", "miss", "first time"),
        ("count a", "unknown", "waits for count a"),
        ("count b", "unknown", "waits for count b"),
        ("greet", "unknown", "waits for count a, count b"),
    ]
    assert lines(tally) == []
    with start() as run:
        body(run, 1, tally)
    told = rehearse(home, HERE, lambda run: body(run, 1, tally))
    assert [one.status for one in told] == ["hit", "hit", "hit", "hit", "miss"]
    changed = rehearse(home, HERE, lambda run: body(run, 5, tally))
    assert [(one.label, one.status) for one in changed[:3]] == [
        ("count a", "miss"),
        ("count b", "hit"),
        ("count a", "unknown"),
    ]
    assert changed[0].resources.cpus == 1
    assert changed[0].name is not None


def test_a_miss_says_what_differs_from_the_last_answer(start: Starts, home: Home) -> None:
    with start() as run:
        run.make(count, CountSpec(number=1), label="one")
    (told,) = rehearse(home, HERE, lambda run: run.make(count, CountSpec(number=2), label="one"))
    assert told.why == "spec.number 1 -> 2"


def test_a_rehearsal_stops_where_a_pipeline_looks_into_an_unknown_outcome(home: Home) -> None:
    def looks(run: Any) -> None:
        base: Dataset = run.make(count, CountSpec(number=1))
        run.make(count, CountSpec(number=base.rows["train"]))

    assert [one.status for one in rehearse(home, HERE, looks)] == ["miss"]
