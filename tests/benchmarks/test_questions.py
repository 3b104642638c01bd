"""What contestants are asked: the same configurations, the same rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import questions
from benchmarks.ours import recipe_of
from benchmarks.questions import EXAMPLES, GRIDS, RECIPE, Question, put_in
from petl_ray.spec import with_overrides

QUESTION = Question("review_sentiment", GRIDS[16], RECIPE)


@pytest.mark.parametrize("count", [16, 64])
def test_a_grid_holds_the_default_recipe_first_and_every_point_once(count: int) -> None:
    found = replace(QUESTION, space=GRIDS[count]).configurations
    assert len(found) == count
    assert put_in(RECIPE, found[0]) == RECIPE
    assert len({tuple(sorted(point.items())) for point in found}) == count


def test_seeds_shuffle_the_order_and_nothing_else() -> None:
    one, other = QUESTION.configurations, replace(QUESTION, seed=1).configurations
    assert one != other and one[0] == other[0]
    assert sorted(map(str, one)) == sorted(map(str, other))


def test_a_question_travels_and_every_part_of_it_names_it() -> None:
    assert Question.of(QUESTION.json()) == QUESTION
    others = [replace(QUESTION, seed=1), replace(QUESTION, rungs=(0.5, 1.0)), replace(QUESTION, mode="half")]
    assert len({QUESTION.digest, *(other.digest for other in others)}) == 4


def test_rivals_and_ours_make_the_same_recipe_of_a_configuration(minilm: str) -> None:
    ours = recipe_of(QUESTION)
    for overrides in QUESTION.configurations[:4]:
        mine = with_overrides(ours, overrides).model_dump(mode="json")
        theirs = put_in(RECIPE, overrides)
        assert {name: mine[name] for name in theirs if name != "method"} == {
            name: value for name, value in theirs.items() if name != "method"
        }
        assert all(mine["method"][name] == value for name, value in theirs["method"].items())


def test_tasks_without_rows_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PETL_RAY_BENCH_DATA", f"{tmp_path}/nowhere")
    assert questions.tasks() == list(EXAMPLES)
    assert questions.missing() == list(questions.PUBLIC)


def test_the_projects_own_rows_are_prepared_for_all() -> None:
    try:
        folder = questions.prepared("review_sentiment")
        sides = {side: questions.rows(folder, side) for side in ("train", "validation", "test")}
        assert questions.labels(folder) == ["negative", "positive"]
        assert all(row["label"] in (0, 1) and row["text"] for rows in sides.values() for row in rows)
        assert min(map(len, sides.values())) > 100
    finally:
        questions.clean()
    assert not folder.exists()
