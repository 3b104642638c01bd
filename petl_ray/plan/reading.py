"""From a file to a Plan: everything that can be wrong with a plan alone is found here, before anything is paid."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from petl_ray.errors import PlanError
from petl_ray.plan.document import apply_settings, keep_tasks, read_document, spread_defaults
from petl_ray.plan.explain import explain
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
    """Every value (or end of a range) that a search may ask for must make a recipe that training accepts."""
    for path, domain in search.space.items():
        values = listed(domain) or [getattr(domain, "low", None), getattr(domain, "high", None)]
        for value in values:
            try:
                with_overrides(recipe, {path: value})
            except PlanError as error:
                raise PlanError(f"{where}.{path}", error.found, error.why, error.do) from None
            except ValidationError as error:
                mended = explain(error, type(recipe), {}, "")
                raise PlanError(f"{where}.{path}", f"value {value!r} is refused", mended.why or str(mended)) from None
