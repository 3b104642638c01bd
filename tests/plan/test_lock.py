"""The lock: outside references resolved once; what they stand for bears identity, where they lie does not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Adapter, Trial
from petl_ray.errors import BaseModelError, PetlRayError
from petl_ray.plan import LockedPlan, lock
from petl_ray.plan.reading import parse_plan
from petl_ray.spec import Pinned


def rows(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"text": text, "label": "ab"[index % 2]}) for index, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def document(tmp_path: Path, tiny_bert: Path) -> dict[str, Any]:
    train = rows(tmp_path / "mail.jsonl", [f"the order {index} is late" for index in range(40)])
    search = {"trials": 3, "space": {"method.rank": [2, 4]}}
    return {
        "version": 1,
        "name": "small",
        "base": {"source": str(tiny_bert)},
        "tasks": {"mail": {"data": {"train": str(train)}, "search": search}},
    }


def locked(document: dict[str, Any], champion: Adapter | None = None) -> LockedPlan:
    return lock(parse_plan(document, "plan"), lambda task: champion)


def test_a_touched_or_moved_file_is_the_same_plan_and_an_edited_row_another(
    document: dict[str, Any], tmp_path: Path
) -> None:
    before = locked(document).digest
    path = Path(document["tasks"]["mail"]["data"]["train"])
    os.utime(path, (1, 1))
    assert locked(document).digest == before
    document["tasks"]["mail"]["data"]["train"] = str(shutil.copy(path, tmp_path / "elsewhere.jsonl"))
    assert locked(document).digest == before
    rows(tmp_path / "elsewhere.jsonl", ["the order 0 is early"])
    assert locked(document).digest != before


def test_a_moved_base_is_the_same_plan_and_another_base_is_not(
    document: dict[str, Any], tmp_path: Path, tiny_bert: Path
) -> None:
    before = locked(document).digest
    document["base"]["source"] = str(shutil.copytree(tiny_bert, tmp_path / "base"))
    assert locked(document).digest == before
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    assert locked(document).digest != before


def test_precision_is_decided_in_the_lock(document: dict[str, Any]) -> None:
    assert locked(document).tasks["mail"].training.base.precision in ("fp32", "bf16", "fp16")
    document["base"]["precision"] = "fp32"
    assert locked(document).tasks["mail"].training.base.precision == "fp32"


def test_a_base_that_is_not_there_is_refused(document: dict[str, Any]) -> None:
    document["base"]["source"] = "package:no_such_model"
    with pytest.raises(BaseModelError):
        locked(document)


def test_rows_that_are_not_there_are_refused(document: dict[str, Any]) -> None:
    document["tasks"]["mail"]["data"]["train"] = "absent.jsonl"
    with pytest.raises(PetlRayError, match="absent"):
        locked(document)


def test_a_lock_survives_json_whole(document: dict[str, Any]) -> None:
    plan = locked(document)
    assert LockedPlan.model_validate(json.loads(json.dumps(plan.model_dump(mode="json")))).digest == plan.digest


def adapter(plan: LockedPlan, name: str, base: Pinned | None = None) -> Adapter:
    return Adapter(
        task=name, task_type="classification", labels=("a", "b"), method="lora", precision="fp32",
        base=base or plan.tasks["mail"].training.base.pinned, trained_parameters=1, base_parameters=2,
    )  # fmt: skip


def test_the_champion_is_a_rival_unless_it_is_the_candidate_and_bears_no_identity(document: dict[str, Any]) -> None:
    bare = locked(document)
    candidate, champion = adapter(bare, "mail"), adapter(bare, "older")
    plan = locked(document, champion)
    assert plan.digest == bare.digest
    assert list(plan.rivals("mail", candidate, {})) == ["champion"]
    assert plan.rivals("mail", champion, {}) == {}
    foreign = locked(document, adapter(bare, "older", Pinned(uri="x", digest="0" * 64)))
    assert foreign.rivals("mail", candidate, {}) == {}


def test_a_task_asks_for_the_tuned_the_default_and_the_head_alone(document: dict[str, Any]) -> None:
    plan = locked(document)
    trial = Trial(
        overrides={"method.rank": 2}, number=1, metric="accuracy", mode="max", score=0.9, default_score=0.8, trials=3
    )
    dataset: Any = object()
    asked = {question.key: question.spec for question in plan.trainings({"mail": dataset}, {"mail": trial})}
    assert list(asked) == ["mail/tuned", "mail/default", "mail/head_only"]
    tuned, head_only = asked["mail/tuned"].model_dump(), asked["mail/head_only"].model_dump()
    assert tuned["method"]["rank"] == 2
    assert asked["mail/default"] == plan.tasks["mail"].training
    assert head_only["method"] == {"kind": "head"}


def test_a_search_that_found_another_kind_of_method_is_trained_with_it(document: dict[str, Any]) -> None:
    overrides = {"method.kind": "bottleneck", "method.size": 8}
    trial = Trial(overrides=overrides, number=1, metric="accuracy", mode="max", score=0.9, default_score=0.8, trials=3)
    dataset: Any = object()
    tuned = locked(document).trainings({"mail": dataset}, {"mail": trial})[0].spec
    assert tuned.model_dump()["method"] == {"kind": "bottleneck", "size": 8, "activation": "gelu"}


def test_a_verb_that_means_something_new_makes_another_plan(document: dict[str, Any]) -> None:
    plan = locked(document)
    assert plan.verbs["train"] >= 1
    newer = plan.model_copy(update={"verbs": {**plan.verbs, "train": plan.verbs["train"] + 1}})
    assert newer.digest != plan.digest


def test_a_task_whose_search_failed_is_not_trained(document: dict[str, Any]) -> None:
    dataset: Any = object()
    assert locked(document).trainings({"mail": dataset}, {}) == []


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"scheduler": "pbt"}, r"tasks\.mail\.search\.space: got method\.rank; pbt explores what may change"),
        ({"space": {"method.rnak": [1, 2]}}, r"tasks\.mail\.search\.space\.method\.rnak"),
        ({"algorithm": "grid", "trials": 1}, r"tasks\.mail\.search\.trials: got 1 with a grid of 2"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_before_anything_is_prepared(
    document: dict[str, Any], search: dict[str, Any], said: str
) -> None:
    document["tasks"]["mail"]["search"].update(search)
    with pytest.raises(PetlRayError, match=said):
        locked(document)
