"""From a plan's DataSource to a DataSpec: every reference resolved once and pinned to the digest of its bytes."""

from __future__ import annotations

from petl_ray.data.references import Hub, parse_reference
from petl_ray.data.spec import DataSource, DataSpec
from petl_ray.spec import Pinned

SIDES = ("train", "validation", "test")


def lock(source: DataSource) -> DataSpec:
    """The same question with its bytes pinned: a file by its sha256, a hub id by its commit.

    Relative paths are taken from the working directory. Raises DataError for a file that is not there (and says which
    one nearby may be meant) and for a hub id that cannot be resolved.
    """
    rules = source.model_dump(exclude=set(SIDES))
    return DataSpec(**rules, **{side: _pin(source, side) for side in SIDES})


def _pin(source: DataSource, side: str) -> Pinned | None:
    uri = getattr(source, side)
    if uri is None:
        return None
    where = f"{source.task}: data.{side}"
    reference = parse_reference(uri, side, where)
    if isinstance(reference, Hub):
        reference = reference.pinned(where)
    return Pinned(uri=reference.uri, digest=reference.digest(where))
