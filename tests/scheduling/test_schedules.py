"""Schedules: cron lines, their ticks, and what is refused."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from petl_ray import scheduling
from petl_ray.errors import ConflictError, NotFoundError, PlanError
from petl_ray.scheduling import Schedule
from petl_ray.store import Database, open_database, tables


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path}/journal.db")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text("version: 1")
    return path


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def schedule(cron: str, zone: str = "UTC") -> Schedule:
    return Schedule("nightly", cron, zone, "plan.yaml", {}, at("2026-01-01T00:00"))


def test_a_row_holds_what_a_schedule_is_and_nothing_else() -> None:
    assert list(tables.schedules.c.keys()) == list(Schedule.__dataclass_fields__)


def test_a_schedule_is_listed_until_it_is_removed(database: Database, plan: Path) -> None:
    scheduling.add(database, "nightly", plan, "30 2 * * *", "Europe/Berlin", {"task": ["a"]})
    (listed,) = scheduling.schedules(database)
    assert (listed.name, listed.timezone, listed.options) == ("nightly", "Europe/Berlin", {"task": ["a"]})
    scheduling.remove(database, "nightly")
    assert scheduling.schedules(database) == []


def test_a_name_is_taken_once_and_an_unknown_one_is_not_removed(database: Database, plan: Path) -> None:
    scheduling.add(database, "nightly", plan, "* * * * *")
    with pytest.raises(ConflictError, match="schedule rm nightly"):
        scheduling.add(database, "nightly", plan, "* * * * *")
    with pytest.raises(NotFoundError):
        scheduling.remove(database, "weekly")


@pytest.mark.parametrize(
    ("name", "cron", "zone", "word"),
    [
        ("Nightly Run", "* * * * *", "UTC", "not a name"),
        ("nightly", "61 * * * *", "UTC", "--cron"),
        ("nightly", "every night", "UTC", "five fields"),
        ("nightly", "* * * * *", "Mars/Olympus", "no such time zone"),
    ],
)
def test_what_could_never_fire_is_refused(
    database: Database, plan: Path, name: str, cron: str, zone: str, word: str
) -> None:
    with pytest.raises(PlanError, match=word):
        scheduling.add(database, name, plan, cron, zone)


def test_a_plan_that_is_not_there_is_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no such file"):
        scheduling.add(database, "nightly", tmp_path / "absent.yaml", "* * * * *")


def test_ticks_follow_the_time_zone_through_daylight_saving() -> None:
    berlin = schedule("30 2 * * *", "Europe/Berlin")
    ticks = berlin.ticks_after(at("2026-07-01T00:00"))
    assert datetime.fromtimestamp(next(ticks), UTC).hour == 0
    winter = berlin.ticks_after(at("2026-12-01T00:00"))
    assert datetime.fromtimestamp(next(winter), UTC).hour == 1


def test_of_many_missed_ticks_only_the_newest_is_due() -> None:
    assert schedule("0 * * * *").due(at("2026-03-01T00:30"), at("2026-03-01T05:10")) == at("2026-03-01T05:00")


def test_nothing_is_due_before_the_next_tick() -> None:
    assert schedule("0 * * * *").due(at("2026-03-01T05:00"), at("2026-03-01T05:59")) is None


def test_the_run_of_a_tick_has_one_name_everywhere() -> None:
    assert schedule("* * * * *", "Europe/Berlin").run_id(at("2026-03-01T05:00")) == "nightly-20260301T050000Z"


def test_the_next_ticks_are_told(database: Database, plan: Path) -> None:
    scheduling.add(database, "nightly", plan, "*/5 * * * *")
    ticks = scheduling.next_ticks(database, 3)["nightly"]
    assert [later - sooner for sooner, later in itertools.pairwise(ticks)] == [300.0, 300.0]
