"""A recipe and what overrides make of it: dotted paths in, a training spec out, or the reason why there is none."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError

from petl_ray.errors import PlanError
from petl_ray.fingerprint import sha256_of
from petl_ray.spec import Spec, with_overrides
from petl_ray.tuning.domains import Choice, Domain, listed
from petl_ray.tuning.sampler import Overrides
from petl_ray.tuning.spec import SearchSpec


class Recipe:
    """The template of one search.

    Raises PlanError where the recipe is no training spec, where a path of the space leads nowhere, or where a grid
    does not fit into the trials.
    """

    def __init__(self, spec: SearchSpec) -> None:
        try:
            self.default = spec.template()
        except ValidationError as error:
            raise PlanError("search.recipe", _first(error), "it is no training spec", "Correct the recipe") from error
        self._plain: dict[str, Any] = self.default.model_dump(mode="json")
        self.metric = str(getattr(self.default, "metric"))  # noqa: B009
        mode = getattr(self.default, "mode")  # noqa: B009
        self.mode: Any = "min" if mode == "min" else "max"
        for path, domain in spec.space.items():
            self._check(path, domain, spec)
        if spec.algorithm == "grid":
            self._check_grid(spec)

    def apply(self, overrides: Overrides) -> Spec:
        """The training spec with `overrides`. Raises pydantic.ValidationError where they do not fit together."""
        return with_overrides(self.default, overrides)

    def present(self, space: dict[str, Domain]) -> Overrides:
        """What the recipe itself has at every path of `space`, for the sampler to learn from trial 0."""
        values: Overrides = {}
        for path in space:
            value: Any = self._plain
            for name in path.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            values[path] = value
        return values

    def _check(self, path: str, domain: Domain, spec: SearchSpec) -> None:
        """A path that no value makes valid is a slip, unless another field of the space decides what is valid there."""
        if any(other.split(".")[-1] == "kind" for other in spec.space):
            return
        trials = domain.values if isinstance(domain, Choice) else (domain.low,)
        reasons = []
        for value in trials:
            try:
                self.apply({path: value})
                return
            except ValidationError as error:
                reasons.append(_first(error))
        raise PlanError(f"search.space.{path}", reasons[0], "no value of it makes a training spec", "Correct the path")

    def _check_grid(self, spec: SearchSpec) -> None:
        """A grid is run whole: cut short it would be a grid of the last path alone."""
        points = math.prod(len(listed(domain) or []) for domain in spec.space.values())
        present = self.present(dict(spec.space))
        inside = all(present[path] in (listed(domain) or []) for path, domain in spec.space.items())
        needed = points if inside else points + 1
        if needed > spec.trials:
            found = f"got {spec.trials} with a grid of {points}"
            raise PlanError("search.trials", found, "a grid is run whole", f"Set trials to {needed}, or list less")


def identity(spec: Spec) -> str:
    """The name of a configuration: two trials of one name would be the same work."""
    return sha256_of(spec)


def reason(error: ValidationError) -> str:
    """Why a configuration is none, in one line."""
    return _first(error)


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg']}" if place else str(detail["msg"])
