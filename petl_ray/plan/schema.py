"""The JSON Schema of a plan, for editors: as the user writes it, with `include` and `defaults`, without what is given."""

from __future__ import annotations

import copy
from typing import Any

from petl_ray.plan.spec import GIVEN, Plan

_SPECS = {"data": "DataSource", "training": "TrainSpec", "search": "SearchSpec", "evaluation": "EvalSpec"}


def plan_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a plan's YAML."""
    schema: dict[str, Any] = copy.deepcopy(Plan.model_json_schema(by_alias=False))
    definitions = schema["$defs"]
    for room, keys in GIVEN.items():
        definition = definitions[_SPECS[room]]
        for key in keys:
            definition["properties"].pop(key, None)
        definition["required"] = [key for key in definition.get("required", []) if key not in keys]
    task = definitions["TaskPlan"]
    task["required"] = []  # `defaults:` may hold any of it
    schema["properties"]["include"] = {
        "description": "YAML files, relative to this one, laid below it",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    schema["properties"]["defaults"] = {"description": "laid below each task", "$ref": "#/$defs/TaskPlan"}
    schema["required"] = []  # a file that is included need not be whole
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "petl-ray plan, version 1"
    return schema
