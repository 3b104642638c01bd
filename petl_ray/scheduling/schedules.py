"""Schedules and their ticks: a cron line in a time zone, and what each tick has started."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from sqlalchemy import delete, insert, select

from petl_ray.errors import ConflictError, NotFoundError, PlanError
from petl_ray.store import Database
from petl_ray.store.tables import firings as firings_table
from petl_ray.store.tables import schedules as schedules_table

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,50}$")


@dataclass(frozen=True)
class Schedule:
    """One schedule: `cron` has five fields, read in `timezone`; `options` say how `petl-ray run` is called, and where."""

    name: str
    cron: str
    timezone: str
    plan_path: str
    options: Mapping[str, Any]
    created_at: float

    def ticks_after(self, moment_s: float) -> Iterator[float]:
        """The ticks after `moment_s`, in order; seconds since 1970. Daylight saving follows Debian's cron."""
        start = datetime.fromtimestamp(moment_s, ZoneInfo(self.timezone))
        for tick in CronSim(self.cron, start):
            yield tick.timestamp()

    def due(self, after_s: float, now_s: float) -> float | None:
        """The newest tick in (after_s, now_s]; older ones that were missed are not made up for."""
        newest = None
        for tick in self.ticks_after(after_s):
            if tick > now_s:
                break
            newest = tick
        return newest

    def run_id(self, tick_s: float) -> str:
        """The id of the run that a tick starts: the same for every scheduler that sees the tick."""
        return f"{self.name}-{datetime.fromtimestamp(tick_s, UTC):%Y%m%dT%H%M%SZ}"


@dataclass(frozen=True)
class Firing:
    """What one tick has started: RUNNING, SUCCEEDED, FAILED, or SKIPPED because the one before was still running."""

    schedule: str
    tick: float
    run_id: str
    state: str
    fired_at: float
    ended_at: float | None = None
    note: str | None = None


def add(
    database: Database,
    name: str,
    plan_path: Path,
    cron: str,
    timezone: str = "UTC",
    options: Mapping[str, Any] | None = None,
) -> Schedule:
    """Remember a schedule. Raises PlanError for a bad name, cron line, time zone or path, ConflictError if it exists."""
    if not _NAME.match(name):
        raise PlanError(f"schedule {name!r}", "not a name", "runs are named after it", "Use a-z, 0-9, '.', '_' and '-'")
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise PlanError(
            "--timezone", f"got {timezone!r}", "no such time zone", "Use a name like Europe/Berlin"
        ) from None
    try:
        CronSim(cron, datetime.now(UTC))
    except CronSimError as error:
        raise PlanError("--cron", f"got {cron!r}", str(error), "Use five fields, like '30 2 * * *'") from None
    if not plan_path.is_file():
        raise PlanError(str(plan_path), "no such file", do="Give the path of a plan")
    with database.begin() as conn:
        if conn.execute(select(schedules_table.c.name).where(schedules_table.c.name == name)).first():
            raise ConflictError(f"schedule {name}", "exists", do=f"Remove it first: petl-ray schedule rm {name}")
        schedule = Schedule(name, cron, timezone, str(plan_path), dict(options or {}), database.now(conn))
        conn.execute(insert(schedules_table).values(**vars(schedule)))
    return schedule


def remove(database: Database, name: str) -> None:
    """Forget a schedule; its firings and runs stay. Raises NotFoundError."""
    with database.begin() as conn:
        if not conn.execute(delete(schedules_table).where(schedules_table.c.name == name)).rowcount:
            raise NotFoundError(f"schedule {name}", "nobody knows it", do="See petl-ray schedule ls")


def schedules(database: Database) -> list[Schedule]:
    """All schedules by name."""
    with database.read() as conn:
        rows = conn.execute(select(schedules_table).order_by(schedules_table.c.name)).mappings().all()
    return [Schedule(**{key: row[key] for key in Schedule.__dataclass_fields__}) for row in rows]


def firings(database: Database, schedule: str | None = None, most: int = 50) -> list[Firing]:
    """The newest firings first, of one schedule or of all."""
    query = select(firings_table).order_by(firings_table.c.tick.desc()).limit(most)
    if schedule is not None:
        query = query.where(firings_table.c.schedule == schedule)
    with database.read() as conn:
        return [Firing(**row) for row in conn.execute(query).mappings().all()]


def next_ticks(database: Database, count: int = 3) -> dict[str, list[float]]:
    """The next ticks of every schedule, seconds since 1970."""
    with database.read() as conn:
        now = database.now(conn)
    upcoming = {}
    for schedule in schedules(database):
        ticks = schedule.ticks_after(now)
        upcoming[schedule.name] = [next(ticks) for _ in range(count)]
    return upcoming
