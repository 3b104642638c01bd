"""Failures as errors of ours: whatever breaks one question must not sink its neighbours."""

from __future__ import annotations

from petl_ray.errors import PetlRayError, TrainingError


def as_failure(what: str, error: Exception) -> PetlRayError:
    """`error` itself where it is one of ours, else a TrainingError of `what` that tells it."""
    if isinstance(error, PetlRayError):
        return error
    do = "Train it again alone, or on another machine, to see whose fault it is"
    ours = TrainingError(what, type(error).__name__, str(error)[:500], do)
    ours.__cause__ = error
    return ours
