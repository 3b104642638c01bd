"""Promotion rows: the truth about which adapter a task's name means, and the whole story of how it came to that.

A name moves in one database transaction together with its promotion row, by compare-and-set on `names.promotion_id`:
whoever read an older champion than the one that stands starts over, so no promotion is lost. Asking twice with the same
key is one promotion. All functions raise TemporaryError where the database is away or busy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, and_, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from petl_ray.artifact import Release
from petl_ray.errors import ConflictError, NotFoundError, TemporaryError
from petl_ray.registry.gate import Decision
from petl_ray.registry.spec import ALIAS
from petl_ray.store import Database
from petl_ray.store.tables import names, promotions

Action = Literal["promote", "refuse", "rollback", "propose"]
_ATTEMPTS = 60


@dataclass(frozen=True)
class Named:
    """What a name means now: the adapter, its version, the promotion that made it so, since when (s since 1970)."""

    task: str
    alias: str
    version: int
    adapter_digest: str
    promotion_id: int
    changed_at: float
    release: Release


@dataclass(frozen=True)
class Promotion:
    """One row of the story: who did what to a task's name, when (`at`, s since 1970), and why."""

    id: int
    key: str
    task: str
    action: Action
    version: int
    adapter_digest: str
    previous_version: int | None
    previous_digest: str | None
    release: Release
    actor: str
    run_id: str | None
    reasons: tuple[str, ...]
    projected: bool
    at: float

    @property
    def moved(self) -> bool:
        """Whether the name meant another adapter before."""
        return self.action in ("promote", "rollback") and self.adapter_digest != self.previous_digest

    @property
    def by_hand(self) -> bool:
        """Whether a person said what the name means, and no run: then the reasons are what that person gave."""
        return self.action in ("promote", "rollback") and self.run_id is None


@dataclass(frozen=True)
class Request:
    """A wish to move (or to leave) a task's name, with the key under which it may be repeated."""

    key: str
    release: Release
    actor: str
    run_id: str | None = None


# What the name means now, and the rollback that took it from the adapter asked about, if that still stands.
Judge = Callable[[Named | None, Promotion | None], tuple[Action, tuple[str, ...]]]


def champion(database: Database, task: str) -> Named | None:
    """What the task's name means now; None if it has never had a champion."""
    with database.read() as connection:
        return _standing(connection, task)


def champions(database: Database) -> dict[str, Named]:
    """What every task's name means now, by task."""
    with database.read() as connection:
        rows = connection.execute(_STANDING.where(names.c.alias == ALIAS)).mappings()
        return {row["task"]: _named(row) for row in rows}


def history(database: Database, task: str | None = None, limit: int | None = None) -> list[Promotion]:
    """The story of a task (of all tasks), newest first."""
    query = select(promotions).where(promotions.c.alias == ALIAS).order_by(promotions.c.id.desc()).limit(limit)
    if task is not None:
        query = query.where(promotions.c.task == task)
    with database.read() as connection:
        return [_promotion(row) for row in connection.execute(query).mappings()]


def why(database: Database, task: str, version: int | None = None) -> list[Promotion]:
    """All that was said of one version, newest first; by default of the champion, or where there is none, of the newest.

    Raises NotFoundError if the task or the version was never judged.
    """
    rows = history(database, task)
    if version is None:
        standing = champion(database, task)
        if standing is None and not rows:
            raise NotFoundError(task, "no champion", "nothing was ever judged under this name", "Run `petl-ray run`")
        version = standing.version if standing else max(rows, key=lambda row: (row.action == "refuse", row.id)).version
    said = [row for row in rows if row.version == version]
    if not said:
        raise NotFoundError(
            f"{task} version {version}", "no promotion row", "the gate never judged it", "See `petl-ray adapters ls`"
        )
    return said


def judged(database: Database, request: Request, judge: Judge) -> Promotion:
    """Ask `judge` about the champion of the moment and write its answer, moving the name where it says so.

    `judge` gets what the name means now, and the rollback from the adapter asked about that still stands, if any; it
    answers with an action and its reasons, and is asked again if the name moved meanwhile. A key that was
    answered before gives that answer again. Raises ConflictError if the key was used for another adapter.
    """
    for _ in range(_ATTEMPTS):
        try:
            with database.begin() as connection:
                if before := _answered(connection, request):
                    return before
                standing = _standing(connection, request.release.task)
                undone = _undone(connection, request.release.task, request.release.adapter.digest)
                action, reasons = judge(standing, undone)
                row = _write(connection, database, request, standing, action, reasons)
                if (
                    action in ("promote", "rollback")
                    and _is_news(row, standing)
                    and not _move(connection, row, standing)
                ):
                    raise _Overtaken
                return row
        except (_Overtaken, IntegrityError):
            continue
    raise TemporaryError(
        request.release.task, f"overtaken {_ATTEMPTS} times", "others keep moving this name", "Try again", delay_s=2.0
    )


def by_gate(decide: Callable[[str | None], Decision]) -> Judge:
    """A judge that asks the gate: `decide(digest of the champion)`. What a person rolled back from is refused anyway."""

    def judge(standing: Named | None, undone: Promotion | None) -> tuple[Action, tuple[str, ...]]:
        decision = decide(standing.adapter_digest if standing else None)
        if undone is not None and (standing is None or standing.adapter_digest != undone.previous_digest):
            return "refuse", (_why_undone(undone), *decision.reasons)
        return ("promote" if decision.status == "champion" else "refuse"), decision.reasons

    return judge


def by_hand(reason: str, action: Action = "promote", expected: int | None = None) -> Judge:
    """A judge that does what a person asked, if the name still means version `expected` (where one is given)."""

    def judge(standing: Named | None, _: Promotion | None) -> tuple[Action, tuple[str, ...]]:
        if expected is not None and (standing is None or standing.version != expected):
            raise ConflictError(
                standing.task if standing else "champion",
                f"version {standing.version if standing else 'none'} stands, expected {expected}",
                "somebody moved the name meanwhile",
                "Look at `petl-ray adapters history` and decide again",
            )
        return action, (reason,)

    return judge


def earlier_champion(database: Database, task: str, to: int | None = None) -> Release:
    """The release to roll back to: the champion before the present one was promoted, or version `to`.

    Raises NotFoundError if the task has no champion, no earlier one, or `to` never was champion.
    """
    standing = champion(database, task)
    if standing is None:
        raise NotFoundError(task, "no champion", "there is nothing to roll back", "Promote a version first")
    moves = [row for row in history(database, task) if row.moved]
    if to is None:
        rise = next((row for row in moves if row.action == "promote" and row.version == standing.version), None)
        to = rise.previous_version if rise else None
        if to is None:
            others = ", ".join(str(number) for number in sorted({row.version for row in moves} - {standing.version}))
            raise NotFoundError(
                f"{task} version {standing.version}",
                "no champion before it",
                "it was the first" if others else "it was the first, so there is nothing to go back to",
                f"Name another that was champion with `--to`: {others}" if others else "",
            )
    found = next((row for row in moves if row.version == to), None)
    if found is None:
        were = ", ".join(str(version) for version in sorted({row.version for row in moves}))
        raise NotFoundError(
            f"{task} version {to}",
            "never was champion",
            f"only {were} were",
            "Roll back to one of these, or `petl-ray adapters promote` it",
        )
    return found.release


def release_of(database: Database, task: str, version: int) -> Release | None:
    """The release of a version that was judged at least once; None otherwise."""
    query = (
        select(promotions.c.release)
        .where(promotions.c.task == task, promotions.c.version == version, promotions.c.action != "propose")
        .order_by(promotions.c.id.desc())
        .limit(1)
    )
    with database.read() as connection:
        found = connection.execute(query).scalar()
    return Release.model_validate(found) if found else None


def undone(database: Database, task: str) -> set[str]:
    """The digests of the adapters that a person rolled back from, and that no person brought back since."""
    left = select(promotions.c.previous_digest).where(promotions.c.task == task, promotions.c.action == "rollback")
    with database.read() as connection:
        digests = connection.execute(left.distinct()).scalars().all()
        return {digest for digest in digests if digest is not None and _undone(connection, task, digest)}


def tasks(database: Database) -> list[str]:
    """Every task that was ever judged, in alphabetical order."""
    with database.read() as connection:
        return sorted(connection.execute(select(promotions.c.task).distinct()).scalars())


def latest(database: Database, task: str | None = None) -> dict[str, Promotion]:
    """The newest row of every task (of one task) that was registered in MLflow, by task."""
    newest = select(func.max(promotions.c.id)).where(promotions.c.alias == ALIAS).group_by(promotions.c.task)
    if task is not None:
        newest = newest.where(promotions.c.task == task)
    with database.read() as connection:
        rows = connection.execute(select(promotions).where(promotions.c.id.in_(newest))).mappings()
        return {row.task: row for row in map(_promotion, rows) if "model" in row.release.about}


def unprojected(database: Database, task: str) -> list[Promotion]:
    """The moves of a task that MLflow's alias does not show yet, oldest first."""
    query = select(promotions).where(promotions.c.task == task, promotions.c.projected == 0).order_by(promotions.c.id)
    with database.read() as connection:
        return [_promotion(row) for row in connection.execute(query).mappings()]


def propose(database: Database, request: Request, reason: str) -> Promotion:
    """Record a wish that moves nothing: somebody pointed MLflow's alias elsewhere."""
    return judged(database, request, lambda *_: ("propose", (reason,)))


def mark_projected(database: Database, task: str, promotion_id: int) -> None:
    """Note that MLflow's alias agrees with every row of the task up to this one."""
    with database.begin() as connection:
        rows = promotions.c.task == task, promotions.c.id <= promotion_id, promotions.c.projected == 0
        connection.execute(update(promotions).where(*rows).values(projected=1))


class _Overtaken(Exception):
    """The name moved between reading and writing; rolls the transaction back."""


_STANDING = select(names, promotions.c.release).join(promotions, promotions.c.id == names.c.promotion_id)


def _standing(connection: Connection, task: str) -> Named | None:
    query = _STANDING.where(names.c.task == task, names.c.alias == ALIAS)
    row = connection.execute(query).mappings().one_or_none()
    return _named(row) if row else None


def _undone(connection: Connection, task: str, digest: str) -> Promotion | None:
    """The newest rollback from adapter `digest`, unless a person made it the champion again since."""
    left = and_(promotions.c.action == "rollback", promotions.c.previous_digest == digest)
    named = and_(promotions.c.action.in_(("promote", "rollback")), promotions.c.adapter_digest == digest)
    mine = promotions.c.task == task, promotions.c.alias == ALIAS, promotions.c.run_id.is_(None)
    query = select(promotions).where(*mine, or_(left, named)).order_by(promotions.c.id.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return _promotion(row) if row is not None and row["adapter_digest"] != digest else None


def _why_undone(row: Promotion) -> str:
    day = datetime.fromtimestamp(row.at, UTC).date().isoformat()
    return (
        f"Version {row.previous_version} was rolled back by {row.actor} on {day}: {'; '.join(row.reasons).rstrip('.')}; "
        f"`petl-ray adapters promote {row.task} {row.previous_version} --reason ...` brings it back."
    )


def _answered(connection: Connection, request: Request) -> Promotion | None:
    row = connection.execute(select(promotions).where(promotions.c.key == request.key)).mappings().one_or_none()
    if row is None:
        return None
    found = _promotion(row)
    if found.adapter_digest != request.release.adapter.digest or found.task != request.release.task:
        raise ConflictError(
            f"promotion {request.key}",
            f"was asked for adapter {found.adapter_digest[:12]} of {found.task}",
            "one key is one promotion",
            "Ask under a new key",
        )
    return found


def _write(
    connection: Connection,
    database: Database,
    request: Request,
    standing: Named | None,
    action: Action,
    reasons: tuple[str, ...],
) -> Promotion:
    release = request.release
    status = {"promote": "champion", "rollback": "champion", "refuse": "refused", "propose": "registered"}[action]
    judged_release = release.model_copy(update={"status": status, "reasons": reasons})
    moves = action in ("promote", "rollback") and (
        standing is None or standing.adapter_digest != release.adapter.digest
    )
    values = {
        "key": request.key,
        "task": release.task,
        "alias": ALIAS,
        "action": action,
        "adapter_digest": release.adapter.digest,
        "version": release.version,
        "release": judged_release.model_dump(mode="json"),
        "previous_digest": standing.adapter_digest if standing else None,
        "previous_version": standing.version if standing else None,
        "actor": request.actor,
        "run_id": request.run_id,
        "reasons": list(reasons),
        "projected": 0 if moves else 1,
        "at": database.now(connection),
    }
    row = connection.execute(promotions.insert().values(**values).returning(promotions)).mappings().one()
    return _promotion(row)


def _is_news(row: Promotion, standing: Named | None) -> bool:
    """Whether the name must point to `row`: another adapter, or the same one whose base is read from another place."""
    return row.moved or standing is None or standing.release.adapter.base.uri != row.release.adapter.base.uri


def _move(connection: Connection, row: Promotion, standing: Named | None) -> bool:
    """Let the name mean what `row` says; False if it no longer means what was read (compare-and-set)."""
    values = {
        "adapter_digest": row.adapter_digest,
        "version": row.version,
        "promotion_id": row.id,
        "changed_at": row.at,
    }
    if standing is None:
        connection.execute(names.insert().values(task=row.task, alias=ALIAS, **values))
        return True
    unchanged = names.c.task == row.task, names.c.alias == ALIAS, names.c.promotion_id == standing.promotion_id
    return connection.execute(update(names).where(*unchanged).values(**values)).rowcount == 1


def _named(row: Mapping[Any, Any]) -> Named:
    release = Release.model_validate(row["release"])
    fields = ("task", "alias", "version", "adapter_digest", "promotion_id", "changed_at")
    return Named(**{name: row[name] for name in fields}, release=release)


def _promotion(row: Mapping[Any, Any]) -> Promotion:
    plain = {name: row[name] for name in Promotion.__dataclass_fields__}
    plain["release"] = Release.model_validate(row["release"])
    plain["reasons"] = tuple(row["reasons"])
    plain["projected"] = bool(row["projected"])
    return Promotion(**plain)
