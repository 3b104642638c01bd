"""Every plan and placement that the project ships is read by the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from petl_ray.plan import plan_schema, read_plan

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_plan_in_configs_is_read(path: Path) -> None:
    plan = read_plan(path)
    assert plan.tasks
    for task in plan.tasks.values():
        assert (ROOT / task.data.train).is_file()


def test_the_schema_knows_every_key_of_the_shipped_plans_and_nothing_that_is_given() -> None:
    schema = plan_schema()
    training = schema["$defs"]["TrainSpec"]
    assert "learning_rate" in training["properties"]
    assert "base" not in training["properties"]
    assert "defaults" in schema["properties"]
