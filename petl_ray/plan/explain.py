"""What is wrong with a plan, said so that a person can mend it: key path, what was found, why, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from petl_ray.errors import PlanError


def near(name: str, known: Iterable[Any]) -> str | None:
    """The known name most like `name`, if one is near enough."""
    found = difflib.get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=0.6)
    return found[0] if found else None


def explain(error: ValidationError, model: type[BaseModel], document: Any, where: str = "") -> PlanError:
    """The PlanError for a failed validation of `document` against `model`; `where` is put before each key path."""
    lines = _once_for_all_tasks(_line(one, model, document, where) for one in error.errors())
    if len(lines) == 1:
        return lines[0].error()
    text = "\n  ".join(str(line.error()) for line in lines)
    return PlanError(where or "the plan", f"{len(lines)} things to mend\n  {text}")


class _Line(tuple[str, str, str, str]):
    def error(self) -> PlanError:
        return PlanError(*self)


def _once_for_all_tasks(lines: Iterable[_Line]) -> list[_Line]:
    """The lines with one line for a mistake that several tasks have inherited."""
    seen: dict[tuple[str, ...], list[_Line]] = {}
    for line in lines:
        seen.setdefault((re.sub(r"\btasks\.[^.]+\.", "", line[0]), *line[1:]), []).append(line)
    return [
        _Line((f"{same[0][0]} (and {len(same) - 1} more tasks)" if len(same) > 1 else same[0][0], *same[0][1:]))
        for same in seen.values()
    ]


def _line(error: Mapping[str, Any], model: type[BaseModel], document: Any, where: str) -> _Line:
    keys = _without_tags(error["loc"], document)
    path = ".".join(str(key) for key in keys)
    what = f"{where}: {path}" if where and path else path or where or "the plan"
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        hint = near(str(keys[-1]), known)
        do = f"Did you mean {hint}?" if hint else (f"Known here: {', '.join(sorted(known))}" if known else "Remove it")
        return _Line((what, "unknown key", "", do))
    if kind == "missing":
        return _Line((what, "missing", "", "Add it"))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = error.get("ctx", {})
        expected = [tag.strip(" '") for tag in str(context.get("expected_tags", "")).split(",") if tag.strip(" '")]
        found = f"got {context['tag']!r}" if "tag" in context else "does not say which kind"
        hint = near(str(context.get("tag", "")), expected)
        return _Line((what, found, f"choose among {', '.join(expected)}", f"Did you mean {hint}?" if hint else ""))
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value = error.get("input")
    found = "" if isinstance(value, Mapping | Sequence) and not isinstance(value, str) else f"got {value!r}"
    if "got " in message or kind == "value_error":  # our own validators say it whole
        return _Line((what, message, "", ""))
    hint = near(str(value), _expected(error)) if kind == "literal_error" else None
    return _Line((what, found, message[:1].lower() + message[1:], f"Did you mean {hint}?" if hint else ""))


def _expected(error: Mapping[str, Any]) -> list[str]:
    text = str(error.get("ctx", {}).get("expected", ""))
    return [part.strip(" '") for part in text.replace(" or ", ",").split(",")]


def _without_tags(location: Sequence[int | str], document: Any) -> list[int | str]:
    """The key path as the user wrote it: pydantic also names the members of unions it tried; those are dropped."""
    keys: list[int | str] = []
    here = document
    for index, part in enumerate(location):
        inner = _inside(here, part)
        if inner is not _ABSENT:
            here = inner
        elif not (index == len(location) - 1 and isinstance(here, Mapping)):
            continue
        keys.append(part)
    return keys


_ABSENT = object()


def _inside(here: Any, part: int | str) -> Any:
    if isinstance(here, Mapping):
        return here.get(part, _ABSENT)
    if isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
        return here[part]
    return _ABSENT


def _fields_at(model: Any, location: Sequence[int | str]) -> set[str]:
    """The keys that a mapping at `location` may have, by name and alias."""
    models = _models(model)
    for part in location:
        following: list[Any] = []
        for one in models:
            if not (isinstance(one, type) and issubclass(one, BaseModel)):
                following += list(get_args(one)[-1:])  # dict[str, X], tuple[X, ...]
            elif (field := _field(one, str(part))) is not None:
                following.append(field)
            else:
                following.append(one)  # the tag of a union: stay
        models = [member for one in following for member in _models(one)]
    names: set[str] = set()
    for one in models:
        if isinstance(one, type) and issubclass(one, BaseModel):
            names |= set(one.model_fields) | {field.alias for field in one.model_fields.values() if field.alias}
    return names


def _field(model: type[BaseModel], name: str) -> Any:
    for key, field in model.model_fields.items():
        if name in (key, field.alias, field.validation_alias):
            return field.annotation
    return None


def _models(annotation: Any) -> list[Any]:
    """The models and containers an annotation may mean, with unions and `Annotated` opened."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return [member for one in get_args(annotation) for member in _models(one)]
    return [] if annotation is type(None) else [annotation]
