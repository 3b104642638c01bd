"""From a file to a Plan: everything that can be wrong with a plan alone is found here, before anything is paid."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from petl_ray.errors import PlanError
from petl_ray.explain import UNKNOWN_KEY, explain
from petl_ray.plan.document import apply_settings, keep_tasks, read_document, spread_defaults
from petl_ray.plan.spec import Plan
from petl_ray.spec import with_overrides
from petl_ray.training import TrainSpec
from petl_ray.tuning import SearchSpec
from petl_ray.tuning.domains import listed


def read_plan(path: Path, settings: Iterable[str] = (), tasks: Iterable[str] = ()) -> Plan:
    """The plan at `path` with `--set` and `--task` applied. Raises PlanError naming key path, found, why and do."""
    document = spread_defaults(apply_settings(read_document(path), settings))
    return parse_plan(keep_tasks(document, tasks), str(path))


def parse_plan(document: dict[str, Any], where: str) -> Plan:
    """The plan in a document whose defaults are spread already."""
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        raise explain(error, Plan, document, where) from None
    for key, task in plan.tasks.items():
        if task.search is not None:
            _check_space(task.search, task.training, f"{where}: tasks.{key}.search.space")
    return plan


def _check_space(search: SearchSpec, recipe: TrainSpec, where: str) -> None:
    """Every value (or end of a range) that a search may ask for must make a recipe that training accepts.

    A field of a method that the space chooses (`method.kind`) must fit one of the kinds it chooses among.
    """
    for path, domain in search.space.items():
        values = listed(domain) or [getattr(domain, "low", None), getattr(domain, "high", None)]
        for value in values:
            tries = [{**kind, path: value} for kind in _kinds_for(path, search)]
            refusals = [refusal for one in tries if (refusal := _refusal(recipe, one))]
            if len(refusals) == len(tries):
                about_it = [refusal for refusal in refusals if refusal.found != UNKNOWN_KEY]
                raise _of_the_space((about_it or refusals)[0], path, value, where)


def _kinds_for(path: str, search: SearchSpec) -> list[dict[str, Any]]:
    """What else may be set beside `path`: each kind that the space has for its mapping; nothing where it has none."""
    kind = f"{path.rpartition('.')[0]}.kind"
    kinds = listed(search.space[kind]) if kind in search.space and kind != path else None
    return [{kind: one} for one in kinds or []] or [{}]


def _refusal(recipe: TrainSpec, overrides: dict[str, Any]) -> PlanError | None:
    try:
        with_overrides(recipe, overrides)
    except ValidationError as error:
        return explain(error, type(recipe), recipe.model_dump(mode="json"))
    return None


def _of_the_space(refusal: PlanError, path: str, value: Any, where: str) -> PlanError:
    """A recipe's refusal told of the space: what it has against another field is what it has against this value."""
    if refusal.what == path:
        return PlanError(f"{where}.{path}", refusal.found, refusal.why, refusal.do)
    return PlanError(f"{where}.{path}", f"value {value!r} is refused", str(refusal))
