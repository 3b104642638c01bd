"""What is wrong with a plan or a placement, said so that a person can mend it: key path, what was found, why, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from petl_ray.errors import PlanError

UNKNOWN_KEY = "unknown key"
DOCUMENT_KEYS = {"defaults", "include"}  # at the top of a plan's file, and gone before it is validated

_Keys = tuple[int | str, ...]

_TYPES = {  # pydantic's errors about a value of another type, and what is wanted
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


_DO = {  # pydantic's errors about a value of the right type, and what to choose instead
    "greater_than_equal": "Choose {ge} or more",
    "greater_than": "Choose more than {gt}",
    "less_than_equal": "Choose {le} or less",
    "less_than": "Choose less than {lt}",
    "literal_error": "Choose one of those",
}


def near(name: str, known: Iterable[Any]) -> str | None:
    """The known name most like `name`, if one is near enough."""
    found = difflib.get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=0.6)
    return found[0] if found else None


def explain(error: ValidationError, model: type[BaseModel], document: Any, where: str = "") -> PlanError:
    """The PlanError for a failed validation of `document` against `model`; `where` is put before each key path."""
    found = [(_without_tags(one["loc"], document), one) for one in error.errors()]
    lines = _once_for_all_tasks(_line(keys, one, model, where) for keys, one in _once_for_all_types(found))
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
    return [_Line((f"{same[0][0]}{_more(len(same) - 1)}", *same[0][1:])) for same in seen.values()]


def _more(tasks: int) -> str:
    return f" (and {tasks} more task{'s' if tasks > 1 else ''})" if tasks else ""


def _once_for_all_types(found: Sequence[tuple[_Keys, Mapping[str, Any]]]) -> Iterable[tuple[_Keys, Mapping[str, Any]]]:
    """One error for a value that may be of several types, or one of some words, and is none of them; none for the types
    that another fits better."""
    kinds: dict[_Keys, list[str]] = {}
    wanted: dict[_Keys, dict[str, None]] = {}
    words: dict[_Keys, Mapping[str, Any]] = {}
    for keys, error in found:
        kinds.setdefault(keys, []).append(error["type"])
    for keys, error in found:
        if error["type"] in _TYPES:
            wanted.setdefault(keys, {})[_TYPES[error["type"]]] = None
        elif error["type"] == "literal_error" and len(kinds[keys]) > 1:
            wanted.setdefault(keys, {})[str(error["ctx"]["expected"])] = None
            words[keys] = error
    for keys, error in found:
        if error["type"] not in _TYPES and not (error["type"] == "literal_error" and keys in words):
            yield keys, error
            continue
        within = any(len(other) > len(keys) and other[: len(keys)] == keys for other, _ in found)
        judged = any(kind not in _TYPES and kind != "literal_error" for kind in kinds[keys])  # its type is right
        types = wanted.pop(keys, None)
        if types and not within and not judged:
            yield keys, {**words.get(keys, error), "msg": f"{' or '.join(types)} is wanted here"}


def _line(keys: _Keys, error: Mapping[str, Any], model: type[BaseModel], where: str) -> _Line:
    path, kind, value, context = ".".join(map(str, keys)), error["type"], error.get("input"), error.get("ctx", {})
    what = f"{where}: {path}" if where and path else path or where or "the plan"
    if kind == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        if len(keys) == 1 and "tasks" in known:  # the top of a plan
            if keys[0] in _fields_at(model, ("tasks", "NAME")):
                do = f"Write defaults.{path}, for every task, or tasks.NAME.{path}"
                return _Line((what, UNKNOWN_KEY, "it belongs to a task", do))
            known |= DOCUMENT_KEYS
        hint = near(str(keys[-1]), known)
        do = f"Did you mean {hint}?" if hint else (f"Known here: {', '.join(sorted(known))}" if known else "Remove it")
        return _Line((what, UNKNOWN_KEY, "", do))
    if kind == "missing":
        return _Line((what, "missing", "", "Add it"))
    if kind == "too_short":
        return _Line((what, _got(value), f"it needs at least {context['min_length']}", "Add one"))
    if kind == "union_tag_invalid":
        key = str(context["discriminator"]).strip("'")
        expected = _quoted(context["expected_tags"])
        hint = near(str(context["tag"]), expected)
        do = f"Did you mean {hint}?" if hint else ""
        return _Line((f"{what}.{key}", _got(value, key), f"choose among {', '.join(expected)}", do))
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.removeprefix(f"{keys[-1]}: ") if keys else message
    if kind not in _TYPES and ("got " in message or kind == "value_error"):  # our own validators say it whole
        return _Line((what, message, "", ""))
    hint = near(str(value), _quoted(context.get("expected", ""))) if kind == "literal_error" else None
    do = f"Did you mean {hint}?" if hint else _DO.get(kind, "").format(**context)
    return _Line((what, _got(value), message[:1].lower() + message[1:], do))


def _got(value: Any, key: str | None = None) -> str:
    """What was found, in words where it is long; with `key`, what a mapping has there."""
    if isinstance(value, Mapping):
        return f"got {value.get(key)!r}" if key is not None else f"got {'a' if value else 'an empty'} mapping"
    if isinstance(value, list | tuple):
        return f"got {'a' if value else 'an empty'} list"
    return f"got {value!r}"


def _quoted(text: str) -> list[str]:
    """The names in pydantic's "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", text)


def _without_tags(location: Sequence[int | str], document: Any) -> _Keys:
    """The key path as the user wrote it: pydantic also names the members of unions it tried; those are dropped."""
    keys: list[int | str] = []
    here = document
    for index, part in enumerate(location):
        inner = _inside(here, part)
        if inner is not _ABSENT:
            here = inner
        elif part == "[key]" or not (index == len(location) - 1 and isinstance(here, Mapping)):
            continue
        keys.append(part)
    return tuple(keys)


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
            elif _tag(one) in (None, part):  # the tag of a union: stay with the member it names
                following.append(one)
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


def _tag(model: type[BaseModel]) -> Any:
    """What tells this member of a union from the others; None where nothing does."""
    kind = model.model_fields.get("kind")
    return kind.default if kind is not None else None


def _models(annotation: Any) -> list[Any]:
    """The models and containers an annotation may mean, with unions and `Annotated` opened."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return [member for one in get_args(annotation) for member in _models(one)]
    return [] if annotation is type(None) else [annotation]
