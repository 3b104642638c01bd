"""What an evaluation may be asked: the metric, the rows, the interval, and what the rivals are called."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from petl_ray.spec import NOT_IDENTITY, Spec

Metric = Literal["accuracy", "macro_f1", "matthews", "loss", "perplexity"]
Role = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]

MODES: dict[str, Literal["max", "min"]] = {
    "accuracy": "max",
    "macro_f1": "max",
    "matthews": "max",
    "loss": "min",
    "perplexity": "min",
}

BUILT_IN_ROLES = ("candidate", "majority", "base")


class EvalSpec(Spec):
    """How a candidate and its rivals are compared on the same held-out rows.

    `roles` names the rival adapters in the order they are handed in: `head_only`, `default`, `champion`, … The rivals
    `majority` (classification) and `base` (causal language modelling) come by themselves.
    """

    metric: Metric = Field("accuracy", description="the primary metric; rivals and differences are given in it")
    split: Literal["test", "validation"] = Field("test", description="the held-out rows to score")
    level: float = Field(0.95, gt=0.5, lt=1.0, description="coverage of every interval")
    resamples: int = Field(2000, ge=200, le=100_000, description="bootstrap resamples of the rows")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the resampling")
    roles: tuple[Role, ...] = Field((), description="names of the rivals, in the order they are handed in")
    batch_tokens: Annotated[int, NOT_IDENTITY] = Field(8192, ge=1, description="padded tokens in one forward pass")

    @model_validator(mode="after")
    def _roles_are_distinct(self) -> Self:
        taken = [role for role in self.roles if role in BUILT_IN_ROLES or self.roles.count(role) > 1]
        if taken:
            raise ValueError(
                f"got the role {taken[0]!r} twice or reserved; every rival needs a name of its own beside "
                f"{', '.join(BUILT_IN_ROLES)}. Rename it"
            )
        return self

    @property
    def mode(self) -> Literal["max", "min"]:
        """Which way the primary metric is better."""
        return MODES[self.metric]
