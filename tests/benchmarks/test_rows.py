"""Rows and units: what is kept, what is found again, what the page says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as page
from benchmarks import code, rows, units
from benchmarks.rows import Row, faster, keep, kept, paired
from benchmarks.units import Unit, Units

MACHINE = {"cpu": "a box", "threads": "1", "torch": "2"}
UNIT = Unit("throughput", "moods", 0, "ours", 0, "ab12")


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(page, "PAGE", tmp_path / "docs" / "benchmarks.md")
    return tmp_path / "results"


def counted(value: float) -> tuple[Callable[[], dict[str, float]], list[float]]:
    """A measurement that notes when it is made."""
    made: list[float] = []

    def measure() -> dict[str, float]:
        made.append(value)
        return {"wall_s": value}

    return measure, made


def lines(results: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (results / f"{name}.jsonl").read_text().splitlines()]


def test_the_newest_row_of_a_figure_stands() -> None:
    keep(Row("speed", "ms", 2.0, 4.0, 2.0, 0.0, 3, 1.5), "step", MACHINE)
    keep(Row("speed", "ms", 1.0, 4.0, 4.0, 0.0, 3, 1.5), "step", MACHINE)
    keep(Row("speed", "ms", 3.0, 4.0, 1.3, 0.0, 3, 1.5), "step", {**MACHINE, "gpu": "a card"})
    assert [(row["ratio"], row["ok"]) for row in kept()] == [(4.0, True), (1.3, False)]


def test_a_row_that_says_nothing_new_is_not_written_again(results: Path) -> None:
    row = Row("quality", "%", 90.0, 89.0, 1.01, 0.0, 9, interval=(-0.5, 2.5))
    keep(row, "quality", MACHINE)
    keep(row, "quality", MACHINE)
    assert len(lines(results, "quality")) == 1


def test_quick_rows_are_printed_and_take_no_place_of_others(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = {True: Row("speed", "ms", 2.0, 4.0, 2.0, 0.0, 3), False: Row("speed", "ms", 1.0, 4.0, 4.0, 0.0, 30)}
    monkeypatch.setattr(page, "BENCHES", {"step": page.Bench(lambda quick, again: iter([rounds[quick]]), True)})
    for words in (["step"], ["step", "--quick"]):
        monkeypatch.setattr("sys.argv", ["benchmarks", *words])
        page.main()
    assert [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()] == [30, 3]
    assert [line["n"] for line in lines(results, "step")] == [30] and "| 30 |" in page.PAGE.read_text()


def test_a_figure_without_a_reach_is_neither_met_nor_missed() -> None:
    assert faster("speed", [0.001, 0.002, 0.003], [0.004]).ok is None
    assert faster("speed", [0.001, 0.002, 0.003], [0.004], reach=2.0).ok is True
    assert faster("speed", [0.001, 0.002, 0.003], [0.004], reach=2.1).ok is False


def test_scores_are_paired() -> None:
    row = paired("quality", [0.91, 0.82, 0.73], [0.90, 0.80, 0.70])
    assert (row.ours, row.baseline) == (82.0, 80.0)
    assert row.interval == pytest.approx((2 - 2.484, 2 + 2.484), abs=0.01)


def test_pairs_of_few_tasks_say_what_the_tasks_alone_show() -> None:
    """Three seeds of one task are no three tasks."""
    ours, theirs = [0.9, 0.9, 0.9, 0.8, 0.8, 0.8], [0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    row = paired("quality", ours, theirs, aim=0.0, tasks=["a"] * 3 + ["b"] * 3)
    assert row.interval is not None and row.interval[0] > -1
    assert row.note == "over the means of 2 tasks -58.53 … +68.53"
    assert paired("quality", ours, theirs, tasks=["a"] * 6, note="x").note == "x", "one task is no interval"


def test_a_bound_of_scores_is_one_of_the_intervals_lower_end() -> None:
    """The means are equal or better in all three; only the last two show it."""
    assert paired("quality", [0.9, 0.7, 0.92], [0.8, 0.8, 0.9], reach=-1.0).ok is False
    assert paired("quality", [0.90, 0.80], [0.90, 0.80], reach=-1.0).ok is True
    assert paired("quality", [0.92, 0.81, 0.73], [0.90, 0.79, 0.71], reach=0.0).ok is True
    assert paired("quality", [0.9], [0.8], reach=-1.0).ok is False, "one pair shows nothing"


def test_a_figure_whose_conditions_were_broken_is_never_well() -> None:
    assert Row("speed", "ms", 1.0, 4.0, 4.0, 0.0, 3, 1.5, held=False).ok is False
    assert Row("speed", "ms", 1.0, 4.0, 4.0, 0.0, 3, held=False).ok is False


def test_a_retired_figure_is_not_shown_and_comes_back_when_it_is_measured(results: Path) -> None:
    row = Row("speed", "ms", 2.0, 4.0, 2.0, 0.0, 3, 1.5)
    keep(row, "step", MACHINE)
    rows.append("step", json.dumps({"figure": "speed", "machine": MACHINE, "retired": "has another name now"}))
    assert kept() == [] and len(lines(results, "step")) == 2
    keep(row, "step", MACHINE)
    assert [one["ratio"] for one in kept()] == [2.0]


def test_a_unit_that_stands_is_not_measured_again(results: Path) -> None:
    measure, made = counted(7.0)
    assert Units("search").facts(UNIT, measure) == {"wall_s": 7.0}
    other, made_later = counted(9.0)
    assert Units("search").facts(UNIT, other) == {"wall_s": 7.0}
    assert (made, made_later) == ([7.0], [])
    assert kept() == [], "a unit is no row"
    assert len(lines(results, "search")) == 1


def test_a_unit_is_measured_once_more_when_that_is_asked_for() -> None:
    Units("search").facts(UNIT, counted(7.0)[0])
    again = Units("search", again=True)
    assert again.facts(UNIT, counted(8.0)[0]) == {"wall_s": 8.0}
    assert again.facts(UNIT, counted(9.0)[0]) == {"wall_s": 8.0}
    assert Units("search").facts(UNIT, counted(9.0)[0]) == {"wall_s": 8.0}


@pytest.mark.parametrize("change", [{"cpu": "another box"}, {"torch": "3"}])
def test_a_unit_of_another_machine_or_library_does_not_stand(
    change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "describe", lambda: MACHINE)
    Units("search").facts(UNIT, counted(7.0)[0])
    monkeypatch.setattr(units, "describe", lambda: {**MACHINE, **change})
    assert Units("search").facts(UNIT, counted(8.0)[0]) == {"wall_s": 8.0}


def test_a_unit_of_another_start_of_the_machine_or_another_day_does_not_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = {"boot": "one", "at_s": 1e9}
    monkeypatch.setattr(units, "session", lambda: dict(moment))
    Units("search").facts(UNIT, counted(7.0)[0])
    moment["at_s"] = 1e9 + 3600
    assert Units("search").facts(UNIT, counted(8.0)[0]) == {"wall_s": 7.0}, "a bench goes on within the day"
    moment["at_s"] = 1e9 + 25 * 3600
    assert Units("search").facts(UNIT, counted(8.0)[0]) == {"wall_s": 8.0}
    moment["boot"] = "two"
    assert Units("search").facts(UNIT, counted(9.0)[0]) == {"wall_s": 9.0}


def test_scores_stand_on_another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "session", lambda: {"boot": "one", "at_s": 1e9})
    Units("quality", timed=False).facts(UNIT, counted(0.5)[0])
    monkeypatch.setattr(units, "session", lambda: {"boot": "two", "at_s": 2e9})
    assert Units("quality", timed=False).facts(UNIT, counted(0.6)[0]) == {"wall_s": 0.5}


def test_a_unit_of_ours_stands_for_the_sources_alone_that_it_was_measured_with() -> None:
    ours = replace(UNIT, code="sources before")
    Units("search").facts(ours, counted(7.0)[0])
    assert Units("search").facts(ours, counted(8.0)[0]) == {"wall_s": 7.0}
    assert Units("search").facts(replace(UNIT, code="sources after"), counted(8.0)[0]) == {"wall_s": 8.0}


def test_a_digest_of_sources_tells_every_change_of_a_python_file(tmp_path: Path) -> None:
    def digest() -> str:
        return code.digest_of(tmp_path)

    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "slot.py").write_text("one = 1\n")
    first = digest()
    (tmp_path / "notes.txt").write_text("no source")
    assert digest() == first
    (tmp_path / "bank" / "slot.py").write_text("one = 2\n")
    changed = digest()
    (tmp_path / "bank" / "slot.py").rename(tmp_path / "slot.py")
    assert len({first, changed, digest()}) == 3
    assert len(code.sources()) == 16


def test_a_unit_that_failed_leaves_nothing_behind(results: Path) -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("a contestant failed")

    with pytest.raises(RuntimeError):
        Units("search").facts(UNIT, fail)
    assert not results.exists()


def test_the_page_has_a_table_a_machine() -> None:
    keep(Row("speed", "ms", 2.0, 4.0, 2.0, 0.0, 3, 1.5), "step", MACHINE)
    keep(Row("quality", "%", 90.0, 89.0, 1.01, None, 1, interval=(-0.5, 2.5)), "quality", MACHINE)
    keep(Row("speed", "ms", 2.0, 40.0, 20.0, 0.0, 3, 1.5, 30.0), "gpu", {**MACHINE, "gpu": "a card"})
    page.write_page()
    text = page.PAGE.read_text()
    assert "## a box" in text and "## a card" in text
    of = code.sources()[:8]
    assert f"| speed | 2.0 ms | 4.0 ms | 2.0 | 1.5 |  | yes |  | 0.0 | 3 | {of} |  |" in text
    assert f"| quality | 90.0 % | 89.0 % | 1.01 |  |  |  | -0.5 … +2.5 |  | 1 | {of} |  |" in text


def test_the_page_shows_notes_and_bounds_in_points_and_old_rows_without_either() -> None:
    row = paired("quality", [0.9, 0.8], [0.9, 0.8], -1.0, 0.0, held=False, note="in 120% of (a)'s core-seconds")
    keep(row, "quality", MACHINE)
    old = {
        "figure": "speed",
        "unit": "ms",
        "ours": 1.0,
        "baseline": 2.0,
        "ratio": 2.0,
        "spread": 0.0,
        "n": 3,
        "ok": None,
    }
    rows.append("step", json.dumps({**old, "reach": None, "aim": None, "machine": MACHINE}))
    page.write_page()
    text = page.PAGE.read_text()
    of = code.sources()[:8]
    assert f"| -1.0 points | 0.0 points | no | +0.0 … +0.0 | 0.176 | 2 | {of} | in 120% of (a)'s core-seconds |" in text
    assert "| speed | 1.0 ms | 2.0 ms | 2.0 |  |  |  |  | 0.0 | 3 |  |  |" in text


def test_the_committed_rows_can_all_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", Path(rows.__file__).parent / "results")
    page.write_page()
    assert all(row["figure"] in page.PAGE.read_text() for row in kept())
