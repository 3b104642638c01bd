"""What people ask of the registry at the terminal: list, promote, roll back, tell the story. Plain values in and out.

Every move is made by hand here, so it carries a person's name and reason, and skips the gate.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from difflib import get_close_matches
from typing import Any

from petl_ray.artifact import Release
from petl_ray.errors import NotFoundError, PlanError, TemporaryError
from petl_ray.registry import promotions
from petl_ray.registry.lineage import in_order
from petl_ray.registry.origin import release_from
from petl_ray.registry.projection import Repair, project
from petl_ray.registry.promotions import Action, Promotion, Request, by_hand, judged
from petl_ray.registry.tracking import Tracking
from petl_ray.store import Database, open_database


def ls(database_url: str, task: str | None = None) -> list[dict[str, Any]]:
    """Every version that was judged, newest first within its task; `champion` marks what the task's name means.

    `status` is champion, rolled back (by a person, and not brought back), former (was champion once) or refused. Raises
    NotFoundError for a task that nobody knows.
    """
    database = open_database(database_url)
    rows = promotions.history(database, task)
    if task is not None and not rows:
        raise _unknown(database, task)
    standing = promotions.champions(database)
    gone = {name: promotions.undone(database, name) for name in {row.task for row in rows}}
    newest: dict[tuple[str, int], Promotion] = {}
    were = set[tuple[str, int]]()
    for row in rows:
        if row.action != "propose":
            newest.setdefault((row.task, row.version), row)
        if row.moved:
            were.add((row.task, row.version))
    listed = []
    for (name, version), row in sorted(newest.items(), key=lambda item: (item[0][0], -item[0][1])):
        adapter = row.release.adapter
        champion = standing.get(name)
        stands = champion is not None and champion.version == version
        status: str = "champion" if stands else "former" if (name, version) in were else row.release.status
        if not stands and row.adapter_digest in gone[name]:
            status = "rolled back"
        listed.append(
            {
                "task": name,
                "version": version,
                "champion": stands,
                "status": status,
                "adapter_digest": row.adapter_digest,
                "base_digest": adapter.base.digest,
                "method": adapter.method,
                "size_bytes": adapter.size_bytes,
                "headline": row.release.about.get("headline", ""),
                "judged_at": row.at,
            }
        )
    return listed


def history(database_url: str, task: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """The story of a task, or of all, newest first. Raises NotFoundError for a task that nobody knows."""
    database = open_database(database_url)
    rows = promotions.history(database, task, limit)
    if task is not None and not rows:
        raise _unknown(database, task)
    return [_told(row) for row in rows]


def why(database_url: str, task: str, version: int | None = None) -> list[dict[str, Any]]:
    """All that was said of one version, newest first: by default of the champion, or of the newest where none is.

    Raises NotFoundError for a task or a version that nobody knows.
    `lineage` says what the version was made from, and by which run of which plan (see `petl_ray.registry.lineage`).
    """
    database = open_database(database_url)
    if task not in promotions.tasks(database):
        raise _unknown(database, task)
    rows = promotions.why(database, task, version)
    return [{**_told(row), "lineage": in_order(row.release.about.get("lineage", {}))} for row in rows]


def promote(database_url: str, tracking: str, task: str, version: int, *, actor: str, reason: str) -> dict[str, Any]:
    """Make `version` the champion by hand, past the gate. Raises NotFoundError if nobody knows that version."""
    database = open_database(database_url)
    return _told(promote_version(database, tracking, task, version, actor, reason))


def promote_version(database: Database, tracking: str, task: str, version: int, actor: str, reason: str) -> Promotion:
    """As `promote`, on an open database. A version that was never judged is taken from its manifest in MLflow."""
    release = promotions.release_of(database, task, version)
    if release is None:
        newest = next((row for row in promotions.history(database, task) if "model" in row.release.about), None)
        if newest is None:
            raise _unknown(database, task)
        model = str(newest.release.about["model"])
        release = release_from(database, Tracking(tracking), task, model, version)
    if release is None:
        raise NotFoundError(
            f"{task} version {version}", "nobody registered it", do="See `petl-ray adapters ls` for versions"
        )
    return _by_hand(database, tracking, release, "promote", actor, reason)


def rollback(
    database_url: str, tracking: str, task: str, to: int | None = None, *, actor: str, reason: str
) -> dict[str, Any]:
    """Make the champion before the present one, or version `to`, the champion again.

    Raises NotFoundError if there is none or `to` never was champion, ConflictError if the name moved meanwhile.
    """
    database = open_database(database_url)
    standing = promotions.champion(database, task)
    if standing is None and not promotions.history(database, task, limit=1):
        raise _unknown(database, task)
    release = promotions.earlier_champion(database, task, to)
    expected = standing.version if standing else None
    return _told(_by_hand(database, tracking, release, "rollback", actor, reason, expected))


def reconcile(database_url: str, tracking: str) -> list[Repair]:
    """Make MLflow's aliases agree with the promotion rows; returns what had to be changed. Raises TemporaryError."""
    return project(open_database(database_url), tracking)


def _by_hand(
    database: Database,
    tracking: str,
    release: Release,
    action: Action,
    actor: str,
    reason: str,
    expected: int | None = None,
) -> Promotion:
    if not reason.strip():
        raise PlanError("reason", "got none", "who looks later wants to know why", "Say why in a sentence")
    key = f"{action}:{time.time_ns()}:{uuid.uuid4().hex}"
    row = judged(database, Request(key, release, actor), by_hand(reason, action, expected))
    with contextlib.suppress(TemporaryError):  # the row stands; the next projection moves the alias
        project(database, tracking, task=row.task)
    return row


def _told(row: Promotion) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": row.at,
        "task": row.task,
        "action": row.action,
        "version": row.version,
        "adapter_digest": row.adapter_digest,
        "previous_version": row.previous_version,
        "previous_digest": row.previous_digest,
        "moved": row.moved,
        "by_hand": row.by_hand,
        "actor": row.actor,
        "run_id": row.run_id,
        "reasons": list(row.reasons),
        "projected": row.projected,
    }


def _unknown(database: Database, task: str) -> NotFoundError:
    known = promotions.tasks(database)
    near = get_close_matches(task, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}"
    if not known:
        hint = "No adapter is registered yet: `petl-ray run` a plan"
    return NotFoundError(task, "nothing was ever registered under this name", do=hint)
