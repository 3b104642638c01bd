"""A champion is measured beside its challenger whatever has changed since it was trained, as long as that can be done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from petl_ray.artifact import Adapter, Dataset, FileEntry, Interval
from petl_ray.bank.memory import Machine
from petl_ray.orchestration import Home, Placement
from petl_ray.orchestration.placement import VerbResources
from petl_ray.plan import LockedPlan, estimate, read_plan
from petl_ray.registry import promotions
from petl_ray.scheduling.launch import launch, lock_at
from petl_ray.spec import Pinned
from petl_ray.store import open_database
from petl_ray.verb import Resources
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


def test_of_several_seeds_all_are_told_beside_each_other(site: Site) -> None:
    site.change(seeds=3)
    summary = launch(read_plan(site.path), site.home, HERE)
    (task,) = summary.tasks
    assert (summary.failures, task.seeds is None) == ({}, False)
    assert task.seeds is not None
    assert (list(task.seeds.scores), task.seeds.asked) == ([0, 1, 2], 3)
    assert min(task.seeds.scores.values()) <= task.seeds.mean <= max(task.seeds.scores.values())
    assert task.scores["default"].value == task.seeds.scores[task.seeds.chosen]
    assert len([role for role in task.differences if role.startswith("seed_")]) == 2
    again = launch(read_plan(site.path), site.home, HERE)
    assert again.tasks[0].adapter_digest == task.adapter_digest


def adapter(score: float, number: int) -> Adapter:
    """An adapter of that validation score, told from others by its number."""
    return Adapter(
        task="mood",
        task_type="classification",
        method="lora",
        base=Pinned(uri="/base", digest="0" * 64),
        precision="fp32",
        trained_parameters=1,
        base_parameters=2,
        validation_score=score,
        files=(FileEntry(path="adapter_model.safetensors", sha256=f"{number:064d}", size_bytes=1),),
    )


@pytest.mark.parametrize(
    ("scores", "median"), [((0.7, 0.9, 0.8), 2), ((0.8, 0.8, 0.8), 1), ((0.9, 0.1), 1), ((0.3,), 0)]
)
def test_what_is_put_forward_is_the_median_by_validation_and_never_the_luckiest(
    site: Site, scores: tuple[float, ...], median: int
) -> None:
    site.change(seeds=len(scores))
    locked = site.lock()
    roles = ["default", *(f"seed_{number}" for number in range(1, len(scores)))]
    adapters = {f"mood/{role}": adapter(scores[number], number) for number, role in enumerate(roles)}
    assert locked.candidates(adapters)["mood"].digest == adapter(scores[median], median).digest
    rivals = locked.rivals("mood", locked.candidates(adapters)["mood"], adapters)
    others = {f"seed_{number}" for number in range(len(scores)) if number != median}
    assert {role for role in rivals if role.startswith("seed_")} == others


def test_each_seed_is_a_training_of_its_own_and_one_seed_changes_no_name(site: Site) -> None:
    alone = site.lock()
    site.change(seeds=1)
    assert site.lock().digest == alone.digest
    site.change(seeds=3)
    rows = Dataset(task="mood", task_type="classification", labels=("glad", "sorry"), rows={})
    asked = {question.key: question.spec for question in site.lock().trainings({"mood": rows}, {})}
    assert list(asked) == ["mood/default", "mood/seed_1", "mood/seed_2", "mood/head_only"]
    assert [asked[key].seed for key in list(asked)[:3]] == [0, 1, 2]


def test_where_less_is_better_the_median_is_not_the_luckiest_either(site: Site) -> None:
    site.change(seeds=2, training={"metric": "loss"})
    adapters = {"mood/default": adapter(0.2, 0), "mood/seed_1": adapter(0.4, 1)}
    assert site.lock().candidates(adapters)["mood"].digest == adapter(0.4, 1).digest


def test_a_seed_that_failed_is_left_out_and_the_others_keep_their_numbers(site: Site) -> None:
    site.change(seeds=3)
    locked = site.lock()
    adapters = {"mood/seed_1": adapter(0.5, 1), "mood/seed_2": adapter(0.6, 2)}
    assert locked.candidates(adapters)["mood"].digest == adapter(0.5, 1).digest
    assert [role for role in locked.rivals("mood", adapter(0.5, 1), adapters) if role != "champion"] == ["seed_2"]


@pytest.mark.parametrize(("slots", "workers", "seeds"), [(2, 1, 1), (3, 1, 3), (8, 1, 3), (8, 2, 1)])
def test_auto_means_three_seeds_where_a_pack_has_the_slots(site: Site, slots: int, workers: int, seeds: int) -> None:
    site.change(seeds="auto")
    placement = Placement(ray="none", cpus=1, verbs={"train": VerbResources(slots=slots, workers=workers)})
    assert lock_at(read_plan(site.path), site.home, placement).tasks["mood"].seeds == seeds


@pytest.mark.parametrize("search", [None, {"space": {"method.targets": ["query_value", "all-linear"]}}])
def test_auto_means_one_seed_where_the_memory_is_not_there_for_three_whatever_is_free_today(
    site: Site, search: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a search finds may be as large as its space allows; a lock must not depend on the hour."""
    site.change(seeds="auto", **({"search": search} if search else {}))
    plan, by_memory = read_plan(site.path), VerbResources(slots="auto")
    placement = Placement(ray="none", cpus=1, verbs={"train": by_memory, "search": by_memory})
    task = lock_at(plan, site.home, placement).tasks["mood"]
    sketch = estimate(task.search or task.training, Resources(), "classification", Machine("cpu", 1e12))["packing"]
    three = (sketch["base_bytes"] + sketch["pass_bytes"] + 3 * sketch["slot_bytes"]) / 0.9
    for machine, seeds in ((Machine("cpu", 1.01 * three, 1.0), 3), (Machine("cpu", 0.99 * three), 1)):
        monkeypatch.setattr("petl_ray.bank.memory.machine_here", lambda found=machine: found)
        assert lock_at(plan, site.home, placement).tasks["mood"].seeds == seeds
    monkeypatch.setattr("petl_ray.bank.memory.machine_here", lambda: Machine("cpu", 1e3))
    assert lock_at(plan, site.home, placement).tasks["mood"].seeds == 1


def test_the_head_alone_keeps_its_own_rate_whatever_the_recipe_changes_on_its_way(site: Site) -> None:
    phases = [{"start": 0.5, "learning_rate": 1e-4}]
    site.change(training={"method": {"kind": "lora", "rank": 2}, "phases": phases, "lora_plus": 4.0, "epochs": 2})
    locked, dataset = site.lock(), Dataset(task="mood", task_type="classification", rows={"train": 1}, files=())
    head = {one.key: one.spec for one in locked.trainings({"mood": dataset}, {})}["mood/head_only"]
    assert head == type(head).model_validate(head.model_dump(mode="json"))
    assert (head.phases, head.lora_plus, head.learning_rate) == ((), 1.0, 1e-2)
