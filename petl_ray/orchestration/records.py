"""Outcomes in the store: the manifest with the sha256 of every file, in the record that exactly one attempt creates.

A record whose manifest verifies means done, whatever the journal says. Files are durable before the manifest is made;
`steps/<name>/record.json` carries it and is created conditionally: of two attempts one outcome stands.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from petl_ray.artifact import Artifact, FileEntry, parse_artifact
from petl_ray.errors import ConflictError, CorruptionError, NotFoundError, PermanentError
from petl_ray.fingerprint import canonical_json, sha256_of
from petl_ray.orchestration.faults import fault
from petl_ray.store import Store, fetch_files

FORMAT = 1  # of a record; one without a word about it is of the first
_REPLACEMENTS = 4


@dataclass(frozen=True)
class Standing:
    """The outcome that stands for a step, and the attempt that made it."""

    artifact: Artifact
    attempt: str


def record_key(name: str) -> str:
    """Where the record of the step `name` lies in the store."""
    return f"steps/{name}/record.json"


def find(store: Store, name: str) -> Standing | None:
    """The outcome of the step `name` if its record verifies: the manifest's bytes, and every object there in full size.

    Raises ConflictError for a record that only another petl-ray can read.
    """
    data = store.read(record_key(name))
    return None if data is None else _verified(store, name, data)


def _verified(store: Store, name: str, record: bytes) -> Standing | None:
    standing = _told(name, record)
    if standing is None or not all(store.has(entry.sha256, entry.size_bytes) for entry in _entries(standing.artifact)):
        return None
    return standing


def _told(name: str, record: bytes) -> Standing | None:
    """What a record says; None for a torn one: no JSON, or a manifest whose bytes have changed."""
    try:
        told = json.loads(record)
    except ValueError:
        return None
    try:
        if told.get("format", FORMAT) != FORMAT:
            raise _foreign(name, f"format {told['format']}, where this petl-ray reads {FORMAT}")
        if sha256_of(told["manifest"]) != told["manifest_sha256"]:
            return None
        return Standing(parse_artifact(told["manifest"]["artifact"]), str(told["attempt"]))
    except ValidationError as error:
        raise _foreign(name, f"its artifact: {error.errors()[0]['msg']}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _foreign(name, "it lacks what a record holds") from error


def _foreign(name: str, found: str) -> ConflictError:
    why = "it is whole, but another petl-ray wrote it, and may still need it"
    return ConflictError(f"store record {record_key(name)}", found, why, "Use that version, or another store")


def _entries(artifact: Artifact) -> tuple[FileEntry, ...]:
    return (*artifact.files, *artifact.traces)


def fetch(store: Store, artifact: Artifact, cache: Path) -> Path:
    """A local read-only directory with the files of an outcome, verified.

    Raises CorruptionError or NotFoundError for a file that the store has torn or lost; every record that names it has
    ceased to verify then, so that the next run makes it anew.
    """
    try:
        return fetch_files(store, _entries(artifact), cache)
    except (CorruptionError, NotFoundError) as error:
        sha256 = error.extra.get("sha256")
        if sha256 is None:  # the whole store is not there
            raise
        store.discard(sha256)
        file = next(entry.path for entry in _entries(artifact) if entry.sha256 == sha256)
        raise type(error)(
            f"{getattr(artifact, 'kind', 'outcome')} {artifact.digest[:12]}: file {file}",
            error.found,
            "what the store has torn or lost no longer counts as done",
            "Run the plan again: the step that made it is computed anew",
        ) from error


def compose(store: Store, name: str, verb: str, artifact: Artifact, attempt: str, **more: Any) -> bytes:
    """The record that would make `artifact` stand, its manifest made last of all its files.

    Raises PermanentError if the artifact names a file that was never kept: nothing half-written is ever recorded.
    """
    for entry in _entries(artifact):
        if not store.has(entry.sha256, entry.size_bytes):
            raise PermanentError(
                f"{verb}: file {entry.path}", "named by the outcome, not in the store", do="Keep it by step.keep(…)"
            )
    fault(verb, "before-manifest")
    manifest = {"name": name, "verb": verb, "artifact": artifact.model_dump(mode="json"), **more}
    record = {
        "format": FORMAT,
        "attempt": attempt,
        "manifest": manifest,
        "manifest_sha256": sha256_of(manifest),
        "outcome_digest": artifact.digest,
    }
    fault(verb, "after-manifest")
    return canonical_json(record).encode()


def create(store: Store, name: str, record: bytes) -> Standing:
    """Create the record, or adopt the one that stands: the first of all attempts wins.

    A record that stands but does not verify (it is torn, or its files were deleted) gives way, and only itself: what
    somebody else has put in its place meanwhile is adopted. Raises ConflictError for a record that only another
    petl-ray can read, PermanentError if even the new one does not verify.
    """
    key = record_key(name)
    data: bytes | None = store.create(key, record)
    for _ in range(_REPLACEMENTS):
        standing = None if data is None else _verified(store, name, data)
        if standing is not None:
            return standing
        data = store.create(key, record) if data is None else store.replace(key, data, record)
    raise PermanentError(f"step {name[:12]}", "its record does not verify", "the store loses what is written to it")
