"""What happened, in SQL: runs, steps, and the events people were shown. The store's records stand above it.

Rows of steps and events do not wait for the disk: a record that stands builds its row again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from petl_ray.artifact import Artifact
from petl_ray.errors import PetlRayError
from petl_ray.orchestration.claims import insert_if_absent
from petl_ray.orchestration.failures import to_json
from petl_ray.store import Database
from petl_ray.store.tables import events, runs, steps
from petl_ray.telemetry import Event
from petl_ray.telemetry.outbox import Waiting


@dataclass(frozen=True)
class Entry:
    """The journal's view of one step of one run, known before it is answered.

    `kind` is `make` or `do`; `label` is for people; `question` and `why` say what is asked and why it was not found.
    """

    run_id: str
    name: str
    position: int
    verb: str
    kind: str
    label: str
    question: Mapping[str, Any]
    why: str | None = None


def pending(conn: Connection, entry: Entry) -> None:
    """Note that a step waits for its turn; what the journal already says of a finished one is begun anew."""
    _ensure(conn, entry)
    _set(conn, entry.run_id, entry.name, state="PENDING", hit=0, why=entry.why, error=None, ended_at=None)


def running(conn: Connection, entry: Entry, now: float) -> None:
    """Note that an attempt begins."""
    _ensure(conn, entry)
    values = {"state": "RUNNING", "hit": 0, "why": entry.why, "error": None, "started_at": now, "ended_at": None}
    _set(conn, entry.run_id, entry.name, attempts=steps.c.attempts + 1, **values)


def succeeded(conn: Connection, entry: Entry, outcome: Artifact, now: float, *, hit: bool) -> bool:
    """Note an outcome. One that was found counts as a hit, unless this run had begun to compute it itself; returns
    whether it had."""
    if hit:  # else `running` has written the row
        _ensure(conn, entry)
    values: dict[str, Any] = {
        "state": "SUCCEEDED",
        "outcome": outcome.model_dump(mode="json"),
        "outcome_digest": outcome.digest,
        "error": None,
        "ended_at": now,
    }
    _set(conn, entry.run_id, entry.name, **values)
    if not hit:
        return True
    fresh = (steps.c.run_id == entry.run_id) & (steps.c.name == entry.name) & (steps.c.attempts == 0)
    return conn.execute(update(steps).where(fresh).values(hit=1, started_at=now)).rowcount == 0


def failed(conn: Connection, entry: Entry, error: PetlRayError, now: float, state: str = "FAILED") -> None:
    """Note an error; `state` is FAILED, CANCELLED, or PENDING for one that will be tried again."""
    _ensure(conn, entry)
    _set(conn, entry.run_id, entry.name, state=state, error=to_json(error), ended_at=now)


def last_question(conn: Connection, verb: str, label: str) -> Mapping[str, Any] | None:
    """The newest question that `verb` has answered under `label` in any run."""
    answered = (steps.c.verb == verb) & (steps.c.label == label) & (steps.c.state == "SUCCEEDED")
    query = select(steps.c.question).where(answered).order_by(steps.c.ended_at.desc()).limit(1)
    found: Mapping[str, Any] | None = conn.execute(query).scalar_one_or_none()
    return found


def told_about(conn: Connection, what: str, most: int = 64) -> list[Mapping[str, Any]]:
    """`about[what]` of the newest outcomes that have one, computed by any run, newest first, each with its `run`.

    Looks at so many outcomes at the most.
    """
    computed = (steps.c.state == "SUCCEEDED") & (steps.c.hit == 0) & (steps.c.kind == "make")
    query = select(steps.c.run_id, steps.c.outcome).where(computed).order_by(steps.c.ended_at.desc()).limit(most)
    told = [(row.run_id, (row.outcome or {}).get("about", {}).get(what)) for row in conn.execute(query)]
    return [{**about, "run": run_id} for run_id, about in told if isinstance(about, Mapping)]


def is_cancelled(conn: Connection, run_id: str) -> bool:
    """Whether somebody asked this run to stop."""
    return bool(conn.execute(select(runs.c.cancel_requested).where(runs.c.id == run_id)).scalar_one_or_none())


def write_events(database: Database, taken: Sequence[Waiting]) -> None:
    """Append events in one transaction; their times are on the database's clock."""
    if not taken:
        return
    with database.begin(durable=False) as conn:
        now, here = database.now(conn), time.monotonic()
        rows = [
            {
                "run_id": one.event.run_id,
                "step": one.event.step,
                "at": now - (here - one.posted_s),
                "event": one.event.event[:80],
                "facts": dict(one.event.facts),
            }
            for one in taken
        ]
        conn.execute(insert(events), rows)


def read_events(conn: Connection, run_id: str, after: int = 0) -> list[tuple[int, Event]]:
    """The events of a run whose id is beyond `after`, in order, with their ids."""
    query = select(events).where(events.c.run_id == run_id, events.c.id > after).order_by(events.c.id)
    rows = conn.execute(query).all()
    return [(int(row.id), Event(row.run_id, row.event, row.step, row.facts, row.at)) for row in rows]


def _ensure(conn: Connection, entry: Entry) -> None:
    row = {
        "run_id": entry.run_id,
        "name": entry.name,
        "position": entry.position,
        "verb": entry.verb,
        "kind": entry.kind,
        "label": entry.label[:200],
        "state": "PENDING",
        "hit": 0,
        "attempts": 0,
        "question": dict(entry.question),
    }
    insert_if_absent(conn, steps, row)


def _set(conn: Connection, run_id: str, name: str, **values: Any) -> None:
    conn.execute(update(steps).where(steps.c.run_id == run_id, steps.c.name == name).values(**values))
