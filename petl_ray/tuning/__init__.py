"""Tuning: which overrides of a recipe are worth training, found by trying many adapters on one frozen base.

In go a SearchSpec (a recipe, a space, limits) and a Dataset, out comes a Trial: the winning overrides and every trial.
This room must not know how an adapter is trained: it drives slots of a session that the training verb names, and it
must not see test rows: they are never shipped to a session.
"""

from petl_ray.artifact import Trial
from petl_ray.tuning.spec import Limits, SearchSpec, planned_work
from petl_ray.verb import Verb, keep_verbs

search: Verb[Trial] = Verb(
    name="search",
    version=1,
    function="petl_ray.tuning.on_ray:search",
    packed="petl_ray.tuning.on_ray:search_all",
    drives_ray=True,
)

__all__ = ["Limits", "SearchSpec", "planned_work", "search"]

keep_verbs(__name__)
