"""Failures as errors of ours: whatever breaks one question must not sink its neighbours."""

from __future__ import annotations

from petl_ray.errors import CapacityError, PetlRayError, TrainingError
from petl_ray.models.faults import is_out_of_memory


def as_failure(what: str, error: Exception) -> PetlRayError:
    """`error` itself where it is one of ours, a CapacityError where memory ran out, else a TrainingError of `what`."""
    if isinstance(error, PetlRayError):
        return error
    if is_out_of_memory(error):
        full = CapacityError(what, "memory ran out", str(error)[:200], "Lower tokens_per_step, or use more memory")
        full.__cause__ = error
        return full
    do = "Train it again alone, or on another machine, to see whose fault it is"
    ours = TrainingError(what, type(error).__name__, str(error)[:500], do)
    ours.__cause__ = error
    return ours
