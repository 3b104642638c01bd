"""What people ask about runs, as plain JSON values: list, show, resume, cancel, logs, and adopting an old outcome."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from petl_ray.errors import ConflictError, NotFoundError
from petl_ray.orchestration import journal, records
from petl_ray.orchestration.claims import holders, take
from petl_ray.orchestration.home import Home, Opened, opened
from petl_ray.orchestration.owner import Owner
from petl_ray.store.tables import runs, steps

_SHOWN = ("id", "pipeline", "state", "owner", "plan_digest", "created_at", "started_at", "ended_at", "error")


def ls(home: Home, limit: int = 50) -> list[dict[str, Any]]:
    """The newest runs first: id, plan (its name), pipeline, state (RESUMABLE included), owner, times, error, steps."""
    place = opened(home)
    with place.database.read() as conn:
        rows = conn.execute(select(runs).order_by(runs.c.created_at.desc()).limit(limit)).all()
        held = holders(place.database, conn, [f"run:{row.id}" for row in rows])
        told = [_shown(row, held) for row in rows]
        for one in told:
            one["steps"] = _counts(conn, one["id"])
    return told


def show(home: Home, run_id: str) -> dict[str, Any]:
    """One run with its summary and every step: label, verb, state, hit, why, attempts, times, outcome, error."""
    place = opened(home)
    with place.database.read() as conn:
        row = _run(conn, run_id)
        held = holders(place.database, conn, [f"run:{row.id}"])
        told = {**_shown(row, held), "holder": held.get(f"run:{row.id}"), "summary": row.summary}
        found = conn.execute(select(steps).where(steps.c.run_id == row.id).order_by(steps.c.position)).all()
    columns = [column.name for column in steps.c if column.name not in ("run_id", "question")]
    told["steps"] = [{name: getattr(one, name) for name in columns} | {"hit": bool(one.hit)} for one in found]
    if told["state"] in ("RESUMABLE", "CANCELLED"):
        for one in told["steps"]:
            one["state"] = told["state"] if one["state"] in ("RUNNING", "PENDING") else one["state"]
    return told


def state_of(home: Home, run_id: str) -> str | None:
    """The state of the run with exactly that id (RESUMABLE included); None if there is none."""
    place = opened(home)
    with place.database.read() as conn:
        row = conn.execute(select(runs).where(runs.c.id == run_id)).one_or_none()
        return None if row is None else _state(row, holders(place.database, conn, [f"run:{run_id}"]))


def resume_info(home: Home, run_id: str) -> dict[str, Any]:
    """What it takes to go on: id, pipeline, plan, locked plan, placement. ConflictError where nothing is left to do."""
    place = opened(home)
    with place.database.read() as conn:
        row = _run(conn, run_id)
        state = _state(row, holders(place.database, conn, [f"run:{row.id}"]))
    if state in ("RUNNING", "SUCCEEDED"):
        raise ConflictError(f"run {row.id}", f"it is {state}", "there is nothing to resume", "See `petl-ray runs show`")
    return {
        "id": row.id,
        "pipeline": row.pipeline,
        "plan": row.plan,
        "locked": row.locked,
        "placement": row.placement,
        "state": state,
    }


def succeeded_before(home: Home, plan_digest: str) -> dict[str, Any] | None:
    """The newest run of the same locked plan that SUCCEEDED with a summary: `id` and `summary`; None without one."""
    place = opened(home)
    done = (runs.c.plan_digest == plan_digest) & (runs.c.state == "SUCCEEDED")
    with place.database.read() as conn:
        rows = conn.execute(select(runs.c.id, runs.c.summary).where(done).order_by(runs.c.ended_at.desc())).all()
    return next(({"id": row.id, "summary": row.summary} for row in rows if row.summary), None)


def cancel(home: Home, run_id: str) -> dict[str, Any]:
    """Ask a run to stop; one that nobody is driving is CANCELLED at once. ConflictError for one that has ended."""
    place = opened(home)
    with place.database.begin() as conn:
        row = _run(conn, run_id)
        state = _state(row, holders(place.database, conn, [f"run:{row.id}"]))
        if state not in ("RUNNING", "RESUMABLE", "PENDING"):
            raise ConflictError(f"run {row.id}", f"it has {state}", "it cannot be stopped any more")
        values: dict[str, Any] = {"cancel_requested": 1}
        if state != "RUNNING":
            values |= {"state": "CANCELLED", "ended_at": place.database.now(conn)}
        conn.execute(update(runs).where(runs.c.id == row.id).values(values))
    return {"id": row.id, "state": "CANCELLED" if state != "RUNNING" else "RUNNING", "cancel_requested": True}


def logs(home: Home, run_id: str, step: str | None = None) -> dict[str, str]:
    """What the workers printed, by step label; only one step's with `step` (a label or the beginning of its name)."""
    place = opened(home)
    with place.database.read() as conn:
        row = _run(conn, run_id)
        found = conn.execute(select(steps).where(steps.c.run_id == row.id).order_by(steps.c.position)).all()
    if step is not None:
        found = [one for one in found if one.label == step or one.name.startswith(step)]
        if not found:
            raise NotFoundError(f"step {step!r}", f"not in run {row.id}", do="See `petl-ray runs show`")
    told = {one.label: _log(place, row.id, one.name) for one in found}
    return {label: text for label, text in told.items() if text or step is not None}


def events(home: Home, run_id: str, after: int = 0) -> list[dict[str, Any]]:
    """What people were shown of a run, in order, beyond the event with id `after`."""
    place = opened(home)
    with place.database.read() as conn:
        found = journal.read_events(conn, _run(conn, run_id).id, after)
    return [{"id": number, "step": one.step, "at": one.at, "event": one.event, **one.facts} for number, one in found]


def adopt(home: Home, old: str, new: str, reason: str) -> dict[str, Any]:
    """Let the outcome of the step `old` stand for the step `new` (fingerprints; `petl-ray plan` shows new ones).

    For a change of a verb or a spec that keeps old outcomes valid. The reason is kept in the new manifest. `old` may be
    the beginning of a name that the journal knows. Raises NotFoundError, or ConflictError where `new` has an outcome.
    """
    place = opened(home)
    with place.database.read() as conn:
        old = _step_name(conn, old)
    standing = records.find(place.store, old)
    if standing is None:
        raise NotFoundError(f"step {old[:12]}", "no outcome of it stands", do="Name a step that has SUCCEEDED")
    if len(new) != 64 or set(new) - set("0123456789abcdef"):
        raise NotFoundError(f"step {new!r}", "not the full name of a step", do="Copy it from `petl-ray plan --json`")
    owner = Owner.new()
    with place.database.begin() as conn:
        claim = take(place.database, conn, [new], owner).get(new)
        verb = conn.execute(select(steps.c.verb).where(steps.c.name == old).limit(1)).scalar_one_or_none() or "adopted"
    if claim is None:
        raise ConflictError(f"step {new[:12]}", "a run is computing it now", do="Wait for it, or cancel that run")
    try:
        if records.find(place.store, new) is not None:
            raise ConflictError(f"step {new[:12]}", "it has an outcome of its own", "an outcome never changes")
        attempt = f"{claim.fence:012d}-{owner.attempt}"
        told = {"adopted_from": old, "reason": reason}
        record = records.compose(place.store, new, verb, standing.artifact, attempt, **told)
        outcome = records.create(place.store, new, record)
    finally:
        with place.database.begin() as conn:
            claim.release(conn)
    return {"old": old, "new": new, "reason": reason, "outcome_digest": outcome.artifact.digest}


def _run(conn: Connection, run_id: str) -> Any:
    """The run with that id, or the only one whose id begins so."""
    rows = conn.execute(select(runs).where(runs.c.id.startswith(run_id, autoescape=True)).limit(20)).all()
    exact = [row for row in rows if row.id == run_id]
    if exact or len(rows) == 1:
        return (exact or rows)[0]
    found = f"{len(rows)} runs begin so" if rows else "nobody knows it"
    raise NotFoundError(f"run {run_id!r}", found, do="See `petl-ray runs ls`")


def _step_name(conn: Connection, name: str) -> str:
    if len(name) == 64:
        return name
    query = select(steps.c.name).where(steps.c.name.startswith(name, autoescape=True)).distinct().limit(2)
    found = conn.execute(query).scalars().all()
    if len(found) != 1:
        told = "several steps begin so" if found else "nobody knows it"
        raise NotFoundError(f"step {name!r}", told, do="Give more of its name; `petl-ray runs show --json` has it")
    return str(found[0])


def _state(row: Any, held: dict[str, str]) -> str:
    return "RESUMABLE" if row.state == "RUNNING" and f"run:{row.id}" not in held else str(row.state)


def _shown(row: Any, held: dict[str, str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _SHOWN} | {
        "plan": (row.locked or {}).get("name"),
        "state": _state(row, held),
        "cancel_requested": bool(row.cancel_requested),
    }


def _counts(conn: Connection, run_id: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for state, hit in conn.execute(select(steps.c.state, steps.c.hit).where(steps.c.run_id == run_id)):
        key = "HIT" if hit and state == "SUCCEEDED" else str(state)
        counts[key] = counts.get(key, 0) + 1
    return counts


def _log(place: Opened, run_id: str, name: str) -> str:
    try:
        return place.home.log_of(run_id, name).read_text(errors="replace")
    except OSError:
        kept = place.store.read(f"logs/{run_id}/{name}.log")
        return kept.decode(errors="replace") if kept else ""
