"""What can be said of a search from its question alone, before anything is prepared or paid."""

from __future__ import annotations

from petl_ray.tuning.population import changeable
from petl_ray.tuning.recipe import Recipe
from petl_ray.tuning.spec import SearchSpec


def refuse_nonsense(spec: SearchSpec) -> None:
    """Raise PlanError for a path that leads nowhere, a grid that the trials cannot hold, and a population that has
    nothing to change while it trains."""
    recipe = Recipe(spec)
    if spec.scheduler == "pbt":
        changeable(recipe, spec.space)
