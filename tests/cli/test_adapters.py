"""What `petl-ray adapters` says of a story of gates and hands."""

from __future__ import annotations

from pathlib import Path

import pytest

from petl_ray.orchestration.home import Home
from petl_ray.registry.gate import Decision
from petl_ray.registry.promotions import Action, Request, by_gate, by_hand, judged
from petl_ray.store import Database, open_database
from tests.cli.conftest import Said, petl_ray
from tests.plainstep import PlainStep
from tests.registry.conftest import make_release


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def database(home: Path) -> Database:
    home.mkdir()
    return open_database(Home.at(home).database_url)


def gate(database: Database, step: PlainStep, version: int, key: str, passes: bool = True) -> None:
    decision = Decision("champion" if passes else "refused", (f"figures of {key}",))
    release = make_release(step, version)
    judged(database, Request(key, release, "run r", run_id="r"), by_gate(lambda _: decision))


def hand(database: Database, step: PlainStep, version: int, action: Action, reason: str) -> None:
    judged(database, Request(reason, make_release(step, version), "ada"), by_hand(reason, action))


def ask(home: Path, *words: str) -> Said:
    return petl_ray("adapters", *words, "--home", str(home))


def table(said: Said) -> list[str]:
    """The rows of a table, without its heads."""
    assert said.code == 0, said.err
    return [line.rstrip() for line in said.out.splitlines()[1:]]


def test_the_list_tells_former_and_rolled_back_from_the_champion(
    database: Database, step: PlainStep, home: Path
) -> None:
    for version in (1, 2, 3):
        gate(database, step, version, f"g{version}")
    hand(database, step, 2, "rollback", "three was worse")
    gate(database, step, 4, "g4", passes=False)
    rows = ask(home, "ls", "--json").json
    assert [(row["version"], row["status"]) for row in rows] == [
        (4, "refused"), (3, "rolled back"), (2, "champion"), (1, "former"),
    ]  # fmt: skip
    assert "rolled back" in ask(home, "ls", "emails").out


def test_the_story_says_what_was_kept_and_why_a_person_moved_it(
    database: Database, step: PlainStep, home: Path
) -> None:
    gate(database, step, 1, "g1")
    gate(database, step, 1, "g1 again")
    gate(database, step, 2, "g2")
    hand(database, step, 1, "rollback", "two was worse")
    back, moved, kept, first = table(ask(home, "history"))
    assert "rollback" in back and back.endswith("two was worse")
    assert "promote" in moved and "figures" not in moved
    assert "kept" in kept and "promote" not in kept
    assert "promote" in first
    assert "kept emails version 1" in ask(home, "why", "emails").out


def test_a_task_of_refusals_only_tells_the_newest(database: Database, step: PlainStep, home: Path) -> None:
    gate(database, step, 1, "g1", passes=False)
    gate(database, step, 2, "g2", passes=False)
    said = ask(home, "why", "emails")
    assert said.code == 0
    assert "emails has no champion" in said.err
    assert "figures of g2" in said.out and "figures of g1" not in said.out


def test_a_task_that_nobody_knows_is_said_with_a_near_name(database: Database, step: PlainStep, home: Path) -> None:
    assert "No adapter is registered yet" in ask(home, "ls").err
    assert "No adapter is registered yet" in ask(home, "why", "emails").err
    gate(database, step, 1, "g1")
    for words in (("why", "email"), ("ls", "email"), ("history", "email")):
        said = ask(home, *words)
        assert said.code == 7
        assert "Did you mean 'emails'?" in said.err
    assert "Known are emails" in ask(home, "ls", "nope").err


def test_the_first_champion_has_nothing_to_go_back_to(database: Database, step: PlainStep, home: Path) -> None:
    gate(database, step, 1, "g1")
    said = ask(home, "rollback", "emails", "--reason", "worse")
    assert said.code == 7
    assert "it was the first, so there is nothing to go back to." in said.err
    assert "Name" not in said.err
