"""Outcomes in the store: the manifest with the sha256 of every file, in the record that exactly one attempt creates.

A record whose manifest verifies means done, whatever the journal says. Files are durable before the manifest is made;
`steps/<name>/record.json` carries it and is created conditionally: of two attempts one outcome stands.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from petl_ray.artifact import Artifact, parse_artifact
from petl_ray.errors import PermanentError
from petl_ray.fingerprint import canonical_json, sha256_of
from petl_ray.orchestration.faults import fault
from petl_ray.store import Store


@dataclass(frozen=True)
class Standing:
    """The outcome that stands for a step, and the attempt that made it."""

    artifact: Artifact
    attempt: str


def record_key(name: str) -> str:
    """Where the record of the step `name` lies in the store."""
    return f"steps/{name}/record.json"


def find(store: Store, name: str) -> Standing | None:
    """The outcome of the step `name` if its record verifies: the manifest's bytes, and every object there."""
    data = store.read(record_key(name))
    return None if data is None else _verified(store, data)


def _verified(store: Store, record: bytes) -> Standing | None:
    try:
        told = json.loads(record)
        if sha256_of(told["manifest"]) != told["manifest_sha256"]:
            return None
        artifact = parse_artifact(told["manifest"]["artifact"])
        attempt = str(told["attempt"])
    except (ValueError, KeyError, TypeError, ValidationError):
        return None
    if not all(store.has(entry.sha256) for entry in (*artifact.files, *artifact.traces)):
        return None
    return Standing(artifact, attempt)


def compose(store: Store, name: str, verb: str, artifact: Artifact, attempt: str, **more: Any) -> bytes:
    """The record that would make `artifact` stand, its manifest made last of all its files.

    Raises PermanentError if the artifact names a file that was never kept: nothing half-written is ever recorded.
    """
    for entry in (*artifact.files, *artifact.traces):
        if not store.has(entry.sha256):
            raise PermanentError(
                f"{verb}: file {entry.path}", "named by the outcome, not in the store", do="Keep it by step.keep(…)"
            )
    fault(verb, "before-manifest")
    manifest = {"name": name, "verb": verb, "artifact": artifact.model_dump(mode="json"), **more}
    record = {
        "attempt": attempt,
        "manifest": manifest,
        "manifest_sha256": sha256_of(manifest),
        "outcome_digest": artifact.digest,
    }
    fault(verb, "after-manifest")
    return canonical_json(record).encode()


def create(store: Store, name: str, record: bytes) -> Standing:
    """Create the record, or adopt the one that stands: the first of all attempts wins.

    A record that stands but does not verify (its files were deleted, say) gives way. Raises PermanentError if even the
    new one does not verify.
    """
    standing = _verified(store, store.create(record_key(name), record))
    if standing is None:
        store.delete(record_key(name))
        standing = _verified(store, store.create(record_key(name), record))
    if standing is None:
        raise PermanentError(f"step {name[:12]}", "its record does not verify", "the store loses what is written to it")
    return standing
