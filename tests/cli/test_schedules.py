"""`petl-ray schedule`: what is added is listed, told and removed; what could never fire is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.cli.conftest import Ask


def test_schedules_are_added_listed_told_and_removed(work: Path, asked: Ask) -> None:
    added = asked("schedule", "add", "night", "plan.yaml", "--cron", "30 2 * * *", "--set", "owner=me")
    assert added.code == 0, added.err
    assert "next at" in added.err
    again = asked("schedule", "add", "night", "plan.yaml", "--cron", "30 2 * * *")
    assert (again.code, "schedule rm night" in again.err) == (8, True)
    (listed,) = asked("schedule", "ls", "--json").json
    assert (listed["name"], listed["options"]["set"], listed["firings"]) == ("night", ["owner=me"], [])
    ticks = asked("schedule", "next", "--json").json["night"]
    assert [later - sooner for sooner, later in itertools.pairwise(ticks)] == [86400.0, 86400.0]
    assert "night" in asked("schedule", "ls").out
    assert asked("schedule", "rm", "night").code == 0
    assert asked("schedule", "ls", "--json").json == []
    assert asked("schedule", "rm", "night").code == 7


def test_ticks_are_told_in_the_zone_of_their_schedule(work: Path, asked: Ask) -> None:
    there = ("--timezone", "Asia/Tokyo")  # no summer time
    added = asked("schedule", "add", "night", "plan.yaml", "--cron", "30 2 * * *", *there)
    assert " 02:30:00 Asia/Tokyo." in added.err
    assert asked("schedule", "next", "--count", "2").out.count(" 02:30:00 Asia/Tokyo") == 2


def test_adding_and_removing_are_told_as_json(work: Path, asked: Ask) -> None:
    added = asked("schedule", "add", "night", "plan.yaml", "--cron", "30 2 * * *", "--task", "mood", "--json").json
    (listed,) = asked("schedule", "ls", "--json").json
    assert {key: listed[key] for key in added if key != "next"} == {key: added[key] for key in added if key != "next"}
    assert added["options"]["task"] == ["mood"]
    assert asked("schedule", "next", "--json").json["night"][0] == added["next"]
    assert asked("schedule", "rm", "night", "--json").json == {"name": "night", "removed": True}
    assert asked("schedule", "ls", "--json").json == []


def test_a_plan_or_a_cron_line_that_cannot_be_read_is_refused_at_once(work: Path, asked: Ask) -> None:
    absent = asked("schedule", "add", "night", "absent.yaml", "--cron", "30 2 * * *")
    assert (absent.code, "absent.yaml" in absent.err) == (2, True)
    odd = asked("schedule", "add", "night", "plan.yaml", "--cron", "61 * * * *")
    assert (odd.code, "--cron" in odd.err) == (2, True)
    assert asked("schedule", "ls", "--json").json == []
