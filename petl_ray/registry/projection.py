"""MLflow's aliases as a projection of the promotion rows, and the repair of those that differ.

An alias that merely lags behind is moved. An alias that somebody moved by hand is a proposal: it is recorded, and put
back; it takes effect only when it is promoted here.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from petl_ray.artifact import Release
from petl_ray.errors import AdapterError, PermanentError
from petl_ray.registry.origin import release_from
from petl_ray.registry.promotions import (
    Named,
    Promotion,
    Request,
    champion,
    latest,
    mark_projected,
    propose,
    unprojected,
)
from petl_ray.registry.spec import ALIAS
from petl_ray.registry.tracking import Tracking
from petl_ray.store import Database

_SECOND_LOOK_S = 0.3  # a projection that is under way elsewhere corrects itself within this
_ATTEMPTS = 10


@dataclass(frozen=True)
class Repair:
    """One alias that was moved: from which version to which, and whether a foreign hand had moved it."""

    task: str
    model: str
    was: int | None
    now: int | None
    foreign: bool

    def facts(self) -> dict[str, Any]:
        """The repair as plain values."""
        return asdict(self)


def project(database: Database, tracking: str, task: str | None = None) -> list[Repair]:
    """Make MLflow's aliases agree with the names (of one task, or of all); returns what had to be changed.

    Raises TemporaryError where MLflow or the database is away; whatever was not repaired then is repaired next time. A
    task that cannot be repaired (its version is gone from MLflow) does not keep the others from it: the first such error
    is raised after all of them.
    """
    by_task = latest(database, task)
    if not by_task:
        return []
    mlflow = Tracking(tracking)
    repairs, broken = [], list[PermanentError]()
    for name, newest in sorted(by_task.items()):
        model = str(newest.release.about["model"])
        try:
            repair = _project_one(database, mlflow, name, model)
        except PermanentError as error:
            broken.append(error)
            continue
        if repair is not None:
            repairs.append(repair)
    if broken:
        raise broken[0]
    return repairs


def _project_one(database: Database, mlflow: Tracking, task: str, model: str) -> Repair | None:
    repair: Repair | None = None
    for _ in range(_ATTEMPTS):
        standing = champion(database, task)
        wanted = standing.version if standing else None
        found = mlflow.alias(model, ALIAS)
        if found != wanted:
            foreign = _is_foreign(database, mlflow, task, model, found)
            if foreign and found is not None:
                _record(database, mlflow, standing, task, model, found)
            _set(mlflow, model, wanted)
            repair = Repair(task, model, found, wanted, foreign)
        if standing is not None:
            mark_projected(database, task, standing.promotion_id)
        # Somebody may have promoted meanwhile, and our alias may be the last written: look again.
        after = champion(database, task)
        if (after.promotion_id if after else None) == (standing.promotion_id if standing else None):
            return repair
    return repair


def _is_foreign(database: Database, mlflow: Tracking, task: str, model: str, found: int | None) -> bool:
    """Whether the alias stands where no promotion that is still to be projected can have left it."""
    if found in _left_by_us(unprojected(database, task)):
        return False
    time.sleep(_SECOND_LOOK_S)
    standing = champion(database, task)
    again = mlflow.alias(model, ALIAS)
    return again == found and again != (standing.version if standing else None)


def _left_by_us(waiting: list[Promotion]) -> set[int | None]:
    return {row.version for row in waiting} | {row.previous_version for row in waiting}


def _record(database: Database, mlflow: Tracking, standing: Named | None, task: str, model: str, found: int) -> None:
    now = f"version {standing.version}" if standing else "no version"
    reason = (
        f"MLflow's alias {ALIAS} of {model} was moved to version {found} by a foreign hand while {now} is the "
        f"champion; it was put back. `petl-ray adapters promote {task} {found}` makes it so."
    )
    try:
        release: Release | None = release_from(database, mlflow, task, model, found)
    except AdapterError:
        release = None  # a version that is not ours: nothing that could ever be served
    if release is None:
        return
    since = standing.promotion_id if standing else 0
    propose(database, Request(f"propose:{since}:{found}:{task}"[:120], release, actor="mlflow"), reason)


def _set(mlflow: Tracking, model: str, version: int | None) -> None:
    if version is None:
        mlflow.unpoint(model, ALIAS)
    else:
        mlflow.point(model, ALIAS, version)
