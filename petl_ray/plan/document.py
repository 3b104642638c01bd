"""From YAML text to one plain document: includes merged, defaults spread over the tasks, `--set` applied.

Nothing is interpreted here beyond the shape of the document; `spec.py` says what a plan may ask.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from petl_ray.errors import PlanError
from petl_ray.explain import near

_DEPTH = 8
_SPACE = ("search", "space")  # the mapping whose keys are dotted paths themselves


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: duplicate keys are refused and `1e-3` is a number (YAML 1.2), not text.

    What looks like a date or a number and is none (`2020-13-45`) is told with its place.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except PlanError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            said = f"{str(node.value)[:60]!r} looks like a YAML {kind} and is none (text stands in quotes)"
            raise ConstructorError(None, None, said, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below, with its place
            if key in seen:
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
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"has the character {text[error.position : error.position + 1]!a}"
        raise PlanError(f"{where} line {line}", found, "YAML is text without control characters", "Remove it") from None
    except RecursionError:
        raise PlanError(where, "lists or mappings lie too deep in each other", "no plan needs that") from None


def merge(below: Any, above: Any, path: tuple[str, ...] = ()) -> Any:
    """`above` laid over `below`: mappings merge key by key, anything else is replaced whole; so is a searched domain."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    if path[-2:] == _SPACE:
        return {**below, **above}  # half a range of the one below and half of this one would be none
    if "kind" in above and "kind" in below and above["kind"] != below["kind"]:
        return above  # another kind of method shares no keys with the one it replaces
    laid = {key: merge(below[key], value, (*path, str(key))) if key in below else value for key, value in above.items()}
    return {**below, **laid}


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
    below: Any = {}
    for file in _included(document.pop("include", []), path):
        below = merge(below, read_document(file, depth + 1))
    merged: dict[str, Any] = merge(below, document)
    return merged


def _included(named: Any, path: Path) -> list[Path]:
    """The files that `include:` of the plan at `path` names."""
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PlanError(f"{path}: include", f"got {named!r}", "files are laid below this one", "Give a path or a list")
    return [(path.parent / name).resolve() for name in names]


def plan_files(path: Path, depth: int = 0) -> list[Path]:
    """The file at `path` and all that it includes, directly or not."""
    document = parse_yaml(path.read_text(encoding="utf-8"), str(path)) if path.is_file() and depth <= _DEPTH else {}
    named = document.get("include", []) if isinstance(document, dict) else []
    return [path, *(inner for file in _included(named, path) for inner in plan_files(file, depth + 1))]


def apply_settings(document: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """The document with each `a.b.c=value` laid over it; the value is read as YAML.

    Below `search.space` the rest of the path is one key, for there keys are dotted paths: `search.space.method.rank`.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise PlanError(f"--set {setting}", "no '=' in it", do="Write --set a.b.c=value")
        value: Any = parse_yaml(text, f"--set {path}")
        for part in reversed(_keys(path.strip())):
            value = {part: value}
        document = merge(document, value)
    return document


def _keys(path: str) -> list[str]:
    """The keys that a dotted path goes through."""
    keys = path.split(".")
    for index in range(2, len(keys)):
        if tuple(keys[index - 2 : index]) == _SPACE:
            return [*keys[:index], ".".join(keys[index:])]
    return keys


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
