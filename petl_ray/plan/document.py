"""From YAML text to one plain document: includes merged, defaults spread over the tasks, `--set` applied.

Nothing is interpreted here beyond the shape of the document; `spec.py` says what a plan may ask.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from petl_ray.errors import PlanError
from petl_ray.plan.explain import near

_DEPTH = 8


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: duplicate keys are refused and `1e-3` is a number (YAML 1.2), not text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                line = key_node.start_mark.line + 1
                raise PlanError(
                    str(key), f"stands twice (again in line {line})", "only one of the two could count", "Remove one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Plain values from YAML text; PlanError with line and column where it is malformed."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where} line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise PlanError(place, str(error.problem or error), "this is not YAML", "Mend the line") from None


def merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`: mappings merge key by key, anything else is replaced whole."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    if "kind" in above and "kind" in below and above["kind"] != below["kind"]:
        return above  # another kind of method shares no keys with the one it replaces
    return {**below, **{key: merge(below[key], value) if key in below else value for key, value in above.items()}}


def read_document(path: Path, depth: int = 0) -> dict[str, Any]:
    """The YAML at `path` with its `include:` files merged below it (paths relative to the including file)."""
    if depth > _DEPTH:
        raise PlanError(str(path), f"includes lie more than {_DEPTH} deep", "they seem to include each other")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = near(path.name, beside)
        raise PlanError(str(path), "no such file", do=f"Did you mean {hint}?" if hint else "Check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(str(path), f"cannot be read ({error})", do="Give a readable UTF-8 YAML file") from None
    document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise PlanError(str(path), f"got {type(document).__name__}", "a plan is a mapping of keys to values")
    included = document.pop("include", [])
    below: Any = {}
    for name in [included] if isinstance(included, str) else included:
        below = merge(below, read_document((path.parent / name).resolve(), depth + 1))
    merged: dict[str, Any] = merge(below, document)
    return merged


def plan_files(path: Path, depth: int = 0) -> list[Path]:
    """The file at `path` and all that it includes, directly or not."""
    document = parse_yaml(path.read_text(encoding="utf-8"), str(path)) if path.is_file() and depth <= _DEPTH else {}
    included = document.get("include", []) if isinstance(document, dict) else []
    names = [included] if isinstance(included, str) else included
    return [path, *(inner for name in names for inner in plan_files((path.parent / name).resolve(), depth + 1))]


def apply_settings(document: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """The document with each `a.b.c=value` laid over it; the value is read as YAML."""
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise PlanError(f"--set {setting}", "no '=' in it", do="Write --set a.b.c=value")
        value: Any = parse_yaml(text, f"--set {path}")
        for part in reversed(path.strip().split(".")):
            value = {part: value}
        document = merge(document, value)
    return document


def spread_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """The document with `defaults:` laid below each task and gone; other keys untouched."""
    document = dict(document)
    defaults = document.pop("defaults", None) or {}
    tasks = document.get("tasks")
    if isinstance(defaults, Mapping) and isinstance(tasks, Mapping):
        document["tasks"] = {name: merge(defaults, task or {}) for name, task in tasks.items()}
    elif defaults and not isinstance(defaults, Mapping):
        raise PlanError(
            "defaults", f"got {type(defaults).__name__}", "defaults are laid below each task", "Give a mapping"
        )
    return document


def keep_tasks(document: dict[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Only the named tasks; all if none is named. PlanError with the nearest name for an unknown one."""
    names = list(wanted)
    tasks = document.get("tasks")
    if not names or not isinstance(tasks, Mapping):
        return document
    for name in names:
        if name not in tasks:
            hint = near(name, tasks)
            choice = f"Did you mean {hint}?" if hint else f"Choose among {', '.join(map(str, tasks))}"
            raise PlanError(f"--task {name}", "the plan has no task of that name", do=choice)
    return {**document, "tasks": {name: tasks[name] for name in tasks if name in names}}
