"""Refusals: how an error becomes a plain value between processes and an HTTP answer with the error's own words."""

from __future__ import annotations

from typing import Any

from petl_ray.errors import AdapterError, CapacityError, NotFoundError, PetlRayError, PlanError, TemporaryError
from petl_ray.serving.batcher import QueueFull

STATUS: tuple[tuple[type[PetlRayError], int], ...] = (
    (QueueFull, 429),
    (TemporaryError, 503),
    (CapacityError, 503),
    (AdapterError, 503),
    (NotFoundError, 404),
    (PlanError, 422),
)


def refusal(error: PetlRayError, status: int | None = None) -> dict[str, Any]:
    """`{"refused": {...}}`: the error's parts, an HTTP status and, where trying later helps, the seconds to wait."""
    status = status or next((code for kind, code in STATUS if isinstance(error, kind)), 500)
    words = {"kind": type(error).__name__, "what": error.what, "found": error.found, "why": error.why, "do": error.do}
    retry_s = error.delay_s if isinstance(error, TemporaryError) else None
    return {"refused": {"status": status, "retry_after_s": retry_s, "message": str(error), **words}}
