"""Why a step is not found: its question compared with the last one that the same verb answered under the same label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from petl_ray.artifact import Artifact
from petl_ray.fingerprint import canonical
from petl_ray.spec import Spec
from petl_ray.verb import Verb

_MOST = 3


def question_of(verb: Verb, spec: Spec, inputs: Sequence[Artifact]) -> dict[str, Any]:
    """What is asked, as plain JSON for the journal: identities of verb and spec, each input's kind and digest."""
    told = [{"kind": getattr(one, "kind", "artifact"), "digest": one.digest} for one in inputs]
    return {"verb": canonical(verb.identity), "spec": canonical(spec), "inputs": told}


def why_miss(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """For people: `first time`, `verb train v1 -> v2`, `spec.learning_rate 0.001 -> 0.002`, `dataset changed`."""
    if before is None:
        return "first time"
    changes = [*_verbs(now["verb"], before["verb"]), *_inputs(now["inputs"], before["inputs"])]
    changes += _values("spec", now["spec"], before["spec"])
    if not changes:
        return "its outcome is gone from the store"
    more = len(changes) - _MOST
    return "; ".join(changes[:_MOST]) + (f"; and {more} more" if more > 0 else "")


def _verbs(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    changes = []
    if now["version"] != before["version"]:
        changes.append(f"verb {now['name']} v{before['version']} -> v{now['version']}")
    used = before["using"]
    for role, verb in now["using"].items():
        changes += _verbs(verb, used[role]) if role in used else [f"verb {now['name']} now uses {verb['name']}"]
    return changes


def _inputs(now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(now) != len(before):
        return [f"inputs {len(before)} -> {len(now)}"]
    pairs = zip(now, before, strict=True)
    return list(dict.fromkeys(f"{one['kind']} changed" for one, old in pairs if one["digest"] != old["digest"]))


def _values(path: str, now: Any, before: Any) -> list[str]:
    if now == before:
        return []
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        if set(now) == set(before) == {"digest"}:
            return [f"{path}: its content changed"]
        keys = sorted({*now, *before})
        return [change for key in keys for change in _values(f"{path}.{key}", now.get(key), before.get(key))]
    return [f"{path} {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
