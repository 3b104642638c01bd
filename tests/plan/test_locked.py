"""A champion is measured beside its challenger whatever has changed since it was trained, as long as that can be done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from petl_ray.artifact import Interval
from petl_ray.orchestration import Home, Placement
from petl_ray.plan import LockedPlan, read_plan
from petl_ray.registry import promotions
from petl_ray.scheduling.launch import launch, lock_at
from petl_ray.store import open_database
from tests.bases import make_tiny_bert
from tests.tinyplan import write_plan, write_rows

HERE = Placement(name="here", ray="none", cpus=1)
QUESTIONS = ["why", "how", "price", "account", "team", "phone", "email", "box", "road"]


class Site:
    """A folder with the tiny plan, and a home for its runs."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.home = folder, Home.at(folder / "home")
        self.path = write_plan(folder, base)
        write_rows(folder / "data" / "mood.jsonl", count=80)
        # What is at stake is who is measured, not who is better.
        self.change(gate={"margin": 1.0, "yardsticks": ["majority"]})
        self.change(training={"method": {"kind": "lora", "rank": 2}, "learning_rate": 0.01, "epochs": 8})

    def change(self, base: str | None = None, **task: object) -> None:
        """Edit the plan: its base, and keys of its one task."""
        plan = yaml.safe_load(self.path.read_text())
        plan["base"]["source"] = base or plan["base"]["source"]
        plan["tasks"]["mood"].update(task)
        self.path.write_text(yaml.safe_dump(plan))

    def grow(self) -> None:
        """Rows of a label that nobody has seen before."""
        with (self.folder / "data" / "mood.jsonl").open("a") as rows:
            for index in range(40):
                words = " ".join(QUESTIONS[index * step % len(QUESTIONS)] for step in (1, 2, 5))
                rows.write(json.dumps({"text": f"{words} question {index}", "label": "asking"}) + "\n")

    def lock(self) -> LockedPlan:
        return lock_at(read_plan(self.path), self.home, HERE)

    def run(self) -> dict[str, Interval]:
        """Run the plan to its end; the differences of its one report."""
        summary = launch(read_plan(self.path), self.home, HERE)
        assert summary.failures == {}
        return summary.tasks[0].differences

    @property
    def last(self) -> promotions.Promotion:
        """What was said last."""
        return promotions.history(open_database(self.home.database_url), "mood", limit=1)[0]


@pytest.fixture
def site(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Where the tiny plan has its first champion."""
    monkeypatch.chdir(tmp_path)
    made = Site(tmp_path, tiny_bert)
    made.run()
    assert (made.last.action, made.last.version) == ("promote", 1), made.last.reasons
    return made


def test_a_task_with_a_new_label_is_measured_beside_its_champion_and_promoted(site: Site) -> None:
    site.grow()
    assert site.run()["champion"].value > 0  # the champion cannot know the new label
    assert (site.last.action, site.last.version) == ("promote", 2), site.last.reasons
    assert "of champion" in site.last.reasons[1]


def test_a_base_that_was_moved_changes_nothing_but_where_it_is_read(site: Site) -> None:
    (site.folder / "base").rename(site.folder / "moved")
    site.change(base="moved")
    site.run()
    standing = promotions.champion(open_database(site.home.database_url), "mood")
    assert standing is not None
    assert (standing.version, standing.release.adapter.base.uri) == (1, str(site.folder / "moved"))
    site.grow()
    assert "champion" in site.run()
    assert (site.last.action, site.last.version) == ("promote", 2), site.last.reasons


def test_a_champion_whose_adapter_was_trained_before_its_base_was_moved_is_measured(site: Site) -> None:
    (site.folder / "base").rename(site.folder / "moved")
    site.change(base="moved")
    site.grow()
    assert "champion" in site.run()
    assert (site.last.action, site.last.version) == ("promote", 2), site.last.reasons


def test_a_champion_on_another_base_is_measured_on_its_own_and_on_a_lost_one_left_to_a_person(site: Site) -> None:
    make_tiny_bert(site.folder / "other", hidden=32, seed=9)
    site.change(base="other")
    assert site.lock().tasks["mood"].champion is not None
    shutil.move(site.folder / "base", site.folder / "away")
    assert site.lock().tasks["mood"].champion is None
    assert "champion" not in site.run()
    assert (site.last.action, site.last.version) == ("refuse", 2)
    assert f"is gone ({site.folder}/base: no such directory)" in site.last.reasons[1]
    shutil.move(site.folder / "away", site.folder / "base")
    assert "champion" in site.run()
    assert (site.last.action, site.last.version) == ("promote", 2), site.last.reasons
