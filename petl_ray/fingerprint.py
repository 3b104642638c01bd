"""Same question, same name, in every process: canonical JSON of plain values and of all that knows its identity.

What cannot be named faithfully (callables, open files, sets, NaN) is refused rather than guessed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from petl_ray.errors import PlanError


@runtime_checkable
class HasIdentity(Protocol):
    """What can say which of its parts bear identity: every Spec, every artifact."""

    def identity(self) -> Mapping[str, Any]:
        """The parts that bear identity, by name."""


def canonical(value: Any, where: str = "value") -> Any:
    """`value` as plain JSON with one form only: keys sorted, Specs and artifacts by identity.

    Raises PlanError for what has no faithful name; `where` says which part it was.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PlanError(where, f"got {value}", "a number that is not finite has no name", "Give a finite number")
        return value
    if isinstance(value, HasIdentity):
        return canonical(value.identity(), where)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise PlanError(where, "got a mapping with keys that are not text", do="Use text keys")
        return {key: canonical(value[key], f"{where}.{key}") for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [canonical(part, f"{where}[{index}]") for index, part in enumerate(value)]
    raise PlanError(
        where,
        f"got a {type(value).__name__}",
        "only plain values, Specs and artifacts have the same name in every process",
        "Pass the value's name or its digest",
    )


def canonical_json(value: Any) -> str:
    """The canonical JSON text of `value`: sorted keys, no spaces, UTF-8."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fingerprint(verb: Any, spec: Any, inputs: Sequence[Any] = ()) -> str:
    """The name of a step: sha256 over the verb (name, version, verbs used), the spec and the inputs' identities."""
    return sha256_of({"verb": verb, "spec": spec, "inputs": list(inputs)})


def sha256_file(path: Path, chunk_bytes: int = 1 << 20) -> str:
    """sha256 (hex) of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(chunk_bytes):
            digest.update(chunk)
    return digest.hexdigest()
