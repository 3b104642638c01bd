"""What a registry may be asked: what a registered model is called, and what a gate demands of a champion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from petl_ray.spec import NOT_IDENTITY, Spec

ALIAS = "champion"


class RegistrySpec(Spec):
    """How a release is registered: one registered model per task, named `prefix` + task."""

    prefix: str = Field("petl-ray.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="starts every name")
    data_license: str = Field("unknown", max_length=200, description="licence of the training data, for the model card")
    artifacts: Annotated[str | None, NOT_IDENTITY] = Field(
        None, description="where MLflow keeps files (a directory or s3://bucket/prefix); by default its own place"
    )


class GateSpec(Spec):
    """What a candidate must show before it becomes the champion.

    The paired lower bound of its improvement must be above 0 over the first of `yardsticks` that the report has, and
    at least -`margin` (in units of the report's metric) over the champion of the day, re-scored on the same rows.
    """

    margin: float = Field(0.02, ge=0.0, description="how much worse than the champion the lower bound may be")
    yardsticks: tuple[str, ...] = Field(
        ("head_only", "base"), min_length=1, description="rivals to beat: the first one that the report has counts"
    )
