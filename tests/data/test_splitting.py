"""A row keeps its side when data grows; groups and moments stay together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from petl_ray.data.rows import Row, _key
from petl_ray.data.spec import DataSource, Split
from petl_ray.data.splitting import split_off, time_boundaries
from tests.data.conftest import Kitchen, tickets

BOTH = ("validation", "test")


def row(text: str, place: str | float | None = None) -> Row:
    return Row(_key(text), text, None, "label", place)


def sides(rows: list[Row], split: Split) -> dict[str, str]:
    return {one.first: side for side, listed in split_off(rows, split, BOTH).items() for one in listed}


TEXTS = st.lists(st.text(min_size=1), max_size=60, unique=True)


@given(old=TEXTS, new=TEXTS, seed=st.integers(-5, 5))
def test_a_row_keeps_its_side_when_data_grows(old: list[str], new: list[str], seed: int) -> None:
    split = Split(seed=seed)
    before = sides([row(text) for text in old], split)
    after = sides([row(text) for text in [*new, *old]], split)
    assert before.items() <= after.items()


@given(groups=st.lists(st.integers(0, 9), min_size=1, max_size=80))
def test_a_group_stands_whole_on_one_side_and_stays_there(groups: list[int]) -> None:
    split = Split(by="group", column="user")
    rows = [row(f"text {number}", str(group)) for number, group in enumerate(groups)]
    found: dict[object, set[str]] = {}
    for side, listed in split_off(rows, split, BOTH).items():
        for one in listed:
            found.setdefault(one.place, set()).add(side)
    assert all(len(where) == 1 for where in found.values())
    assert sides(rows[: len(rows) // 2], split).items() <= sides(rows, split).items()


@given(times=st.lists(st.integers(0, 40), min_size=1, max_size=80))
def test_newest_rows_are_tested_and_moments_stay_together(times: list[int]) -> None:
    rows = [row(f"text {number}", float(at)) for number, at in enumerate(times)]
    split = split_off(rows, Split(by="time", column="at", validation_from="20", test_from="30"), BOTH)
    spans = [{one.place for one in split[side]} for side in ("train", "validation", "test")]
    known = [span for span in spans if span]
    assert all(max(older) < min(newer) for older, newer in pairwise(known))  # type: ignore[type-var]
    assert sum(len(listed) for listed in split.values()) == len(rows)


@given(old=st.lists(st.integers(0, 40), max_size=60), new=st.lists(st.integers(0, 60), max_size=60))
def test_fixed_boundaries_keep_every_row_on_its_side(old: list[int], new: list[int]) -> None:
    split = Split(by="time", column="at", validation_from="20", test_from="30")
    before = [row(f"old {number}", float(at)) for number, at in enumerate(old)]
    grown = before + [row(f"new {number}", float(at)) for number, at in enumerate(new)]
    assert sides(before, split).items() <= sides(grown, split).items()


def test_shares_are_met_on_many_rows() -> None:
    split = split_off([row(f"text {number}") for number in range(20_000)], Split(validation=0.1, test=0.2), BOTH)
    assert len(split["test"]) / 20_000 == pytest.approx(0.2, abs=0.01)
    assert len(split["validation"]) / 20_000 == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("split", "missing"),
    [
        ({}, "validation"),
        ({"validation": 0.1, "test": 0.2}, "validation"),
        ({"validation_from": "2024-01-01"}, "test"),
        ({"validation": 0, "test": 0.2}, "test"),
    ],
)
def test_a_share_by_time_is_refused_because_it_would_train_on_old_test_rows(
    split: dict[str, object], missing: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        DataSource.model_validate({"task": "t", "train": "t.csv", "split": {"by": "time", "column": "at", **split}})
    assert refused.value.errors()[0]["msg"] == (
        f"Value error, split: by: time needs {missing}_from, the instant from which rows belong to {missing} (or "
        f"{missing}: 0). A share would move it as data grows, and old test rows into training"
    )


def test_by_time_a_side_that_is_not_wanted_or_has_its_own_file_needs_no_instant() -> None:
    split = {"by": "time", "column": "at", "test_from": "2024-01-01"}
    DataSource.model_validate({"task": "t", "train": "t.csv", "split": {**split, "validation": 0}})
    DataSource.model_validate({"task": "t", "train": "t.csv", "validation": "v.csv", "split": split})


def test_a_side_without_a_boundary_has_no_rows() -> None:
    split = Split(by="time", column="at", validation=0, test_from="98")
    assert time_boundaries(split, BOTH) == {"test": 98.0, "validation": float("inf")}
    assert time_boundaries(split, {"validation"}) == {"test": float("inf"), "validation": float("inf")}


def test_another_share_for_one_side_moves_no_row_of_the_other() -> None:
    rows = [row(f"text {number}") for number in range(500)]
    small, large = (sides(rows, Split(validation=share, test=0.2)) for share in (0.1, 0.3))
    assert {text for text, side in small.items() if side == "test"} == {
        text for text, side in large.items() if side == "test"
    }


def test_another_seed_splits_otherwise() -> None:
    rows = [row(f"text {number}") for number in range(100)]
    assert sides(rows, Split(seed=0)) != sides(rows, Split(seed=1))


def test_spelling_and_spaces_do_not_move_a_row() -> None:
    assert _key("Café  au lait") == _key("cafe\u0301 AU\nlait")
    assert _key("a b", "c") != _key("a", "b c")


@pytest.mark.parametrize(
    "rule",
    [
        {"validation": 0.5, "test": 0.5},
        {"by": "group"},
        {"by": "time"},
        {"column": "user"},
        {"test_from": "2024-01-01"},
        {"by": "time", "column": "at", "test_from": "yesterday"},
        {"by": "time", "column": "at", "validation_from": "2024-02-01", "test_from": "2024-01-01"},
        {"test": 1.0},
        {"test": -0.1},
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Split.model_validate(rule)


def test_rows_are_split_by_the_times_people_write(kitchen: Kitchen, make_jsonl: Callable[..., Path]) -> None:
    rows = [{**one, "at": f"2024-{1 + number // 10:02d}-05T10:00:00Z"} for number, one in enumerate(tickets(120))]
    path = make_jsonl(rows)
    split = {"by": "time", "column": "at", "validation_from": "2024-10-01", "test_from": "2024-12-01"}
    dataset = kitchen.prepare(path, split=split)
    assert dataset.rows == {"train": 90, "validation": 20, "test": 10}
    assert kitchen.card(dataset)["boundaries_s"] == {"validation_from": 1727740800.0, "test_from": 1733011200.0}
    before = kitchen.sides(dataset)
    later = [{**one, "at": "2025-01-05"} for one in tickets(200, 120)]
    grown = kitchen.sides(kitchen.prepare(make_jsonl([*rows, *later]), split=split))
    assert before.items() <= grown.items()
    assert sum(side == "test" for side in grown.values()) == 210


@pytest.mark.parametrize(
    ("value", "message"),
    [("soon", "row 31: at: got str 'soon', expected a time"), (None, "row 31: at: missing; the split goes by it")],
)
def test_a_row_without_a_time_is_named(
    kitchen: Kitchen, make_jsonl: Callable[..., Path], value: str | None, message: str
) -> None:
    rows = [{**one, "at": number} for number, one in enumerate(tickets(30))]
    split = {"by": "time", "column": "at", "validation_from": "10", "test_from": "20"}
    with pytest.raises(Exception, match=message):
        kitchen.prepare(make_jsonl([*rows, {**tickets(1, 30)[0], "at": value}]), split=split)


def test_a_split_column_that_is_not_there_is_refused(kitchen: Kitchen, make_jsonl: Callable[..., Path]) -> None:
    rows = [{**one, "user_id": 1} for one in tickets(30)]
    with pytest.raises(Exception, match=r"split\.column: no column 'userid'\. Did you mean user_id"):
        kitchen.prepare(make_jsonl(rows), split={"by": "group", "column": "userid"})
