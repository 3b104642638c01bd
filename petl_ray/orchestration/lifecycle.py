"""From the beginning of a run to its end: a new one, or the same locked plan's resumable one, held by a claim.

PENDING RUNNING SUCCEEDED FAILED CANCELLED are written; RESUMABLE is derived: RUNNING, and nobody alive holds the run.
"""

from __future__ import annotations

import getpass
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from petl_ray.errors import ClaimLost, ConflictError, PetlRayError, RunCancelled, TemporaryError
from petl_ray.fingerprint import sha256_of
from petl_ray.orchestration.claims import LASTS_S, Claim, holders, take
from petl_ray.orchestration.executor import Executor, InProcess
from petl_ray.orchestration.failures import as_ours, to_json
from petl_ray.orchestration.home import Home, Opened, opened
from petl_ray.orchestration.owner import Owner
from petl_ray.orchestration.placement import Placement
from petl_ray.orchestration.pulse import Pulse
from petl_ray.orchestration.run import Run
from petl_ray.store.tables import runs, steps
from petl_ray.telemetry import Sink


@contextmanager
def start_run(
    home: Home,
    *,
    pipeline: str,
    locked: Mapping[str, Any],
    digest: str | None = None,
    plan: Mapping[str, Any] | None = None,
    placement: Placement | None = None,
    owner: str | None = None,
    run_id: str | None = None,
    on_event: Sink | None = None,
    lasts_s: float = LASTS_S,
) -> Iterator[Run]:
    """The run of `pipeline` over the locked plan, to be used in a `with`: a resumable one is taken up, else one begins.

    `locked` and `plan` are plain JSON. `digest` names the locked plan (default: the sha256 of all of it); give it where
    parts of the lock bear no identity. A run that is taken up sees its own lock, in `run.locked`. With `run_id` it is
    that run and no other: taken up if it is resumable, failed or cancelled. At the end of the block the run SUCCEEDED,
    or FAILED if any step did; set `run.summary` (JSON) before. An interrupt, a busy world or a lost claim leave it
    resumable; RunCancelled ends it CANCELLED.
    Raises ConflictError where `run_id` is alive elsewhere, has succeeded, or belongs to another plan.
    """
    where = placement or Placement()
    place = opened(home)
    plan_digest = digest or sha256_of({"pipeline": pipeline, "locked": locked})
    row = {
        "pipeline": pipeline,
        "plan_digest": plan_digest,
        "plan": dict(plan or {}),
        "locked": dict(locked),
        "placement": where.model_dump(mode="json"),
        "owner": owner or getpass.getuser(),
    }
    chosen, claim, position, standing = _enter(place, row, run_id, lasts_s)
    with Pulse(place.database, chosen, on_event, beat_s=lasts_s / 5, lasts_s=lasts_s) as pulse:
        pulse.watch([claim])
        run = Run(place, chosen, plan_digest, claim, _executor(where), pulse, position)
        run.locked = dict(locked if standing is None else standing)
        run.report("run.start" if standing is None else "run.resume", pipeline=pipeline)
        try:
            yield run
        except BaseException as error:
            _leave(place, run, claim, error)
            raise
        _leave(place, run, claim, None)


def _executor(placement: Placement) -> Executor:
    if placement.ray == "none":
        return InProcess(placement)
    from petl_ray.orchestration.on_ray import OnRay  # Ray takes a second to import; most commands never need it

    return OnRay(placement)


def _enter(
    place: Opened, row: dict[str, Any], run_id: str | None, lasts_s: float
) -> tuple[str, Claim, int, dict[str, Any] | None]:
    """Find or write the run's row and claim it in one transaction; (id, claim, next step's position, lock it had)."""
    with place.database.begin() as conn:
        now = place.database.now(conn)
        chosen = run_id or _resumable(place, conn, row["plan_digest"])
        known = conn.execute(select(runs).where(runs.c.id == chosen)).one_or_none() if chosen else None
        if known is not None:
            _check_same(place, conn, known, row["plan_digest"])
        chosen = (
            chosen
            or f"{row['pipeline'][:40]}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(2)}"
        )
        claim = take(place.database, conn, [f"run:{chosen}"], Owner.new(), lasts_s).get(f"run:{chosen}")
        if claim is None:
            raise ConflictError(f"run {chosen}", "another process has just taken it up", do="Wait for it, or cancel it")
        if known is None:
            values = {
                **row,
                "id": chosen,
                "state": "RUNNING",
                "cancel_requested": 0,
                "created_at": now,
                "started_at": now,
            }
            conn.execute(insert(runs).values(values))
        else:
            again = {
                "state": "RUNNING",
                "cancel_requested": 0,
                "ended_at": None,
                "error": None,
                "placement": row["placement"],
            }
            conn.execute(update(runs).where(runs.c.id == chosen).values(again))
        last = conn.execute(select(func.max(steps.c.position)).where(steps.c.run_id == chosen)).scalar_one_or_none()
        return chosen, claim, 0 if last is None else int(last) + 1, None if known is None else known.locked


def _resumable(place: Opened, conn: Connection, plan_digest: str) -> str | None:
    """The newest run of the same locked plan that is RUNNING in the journal and held by nobody alive."""
    same = (runs.c.plan_digest == plan_digest) & (runs.c.state == "RUNNING")
    found = conn.execute(select(runs.c.id).where(same).order_by(runs.c.created_at.desc())).scalars().all()
    held = holders(place.database, conn, [f"run:{one}" for one in found])
    return next((one for one in found if f"run:{one}" not in held), None)


def _check_same(place: Opened, conn: Connection, known: Any, plan_digest: str) -> None:
    what = f"run {known.id}"
    if known.plan_digest != plan_digest:
        raise ConflictError(what, "it belongs to another plan", "a run's plan never changes", "Choose another run id")
    if known.state == "SUCCEEDED":
        raise ConflictError(what, "it has SUCCEEDED", "a finished run is not run again", "Choose another run id")
    if holder := holders(place.database, conn, [f"run:{known.id}"]).get(f"run:{known.id}"):
        raise ConflictError(what, f"{holder} is running it", do="Wait for it, or `petl-ray runs cancel` it")


def _leave(place: Opened, run: Run, claim: Claim, error: BaseException | None) -> None:
    """Write how the run ended, unless it is to be taken up again, and give it back."""
    if isinstance(error, ClaimLost) or claim.lost.is_set():
        return
    state, told = _ending(run, error)
    with place.database.begin() as conn:
        claim.check(conn)
        if state is not None:
            ended_at = place.database.now(conn)
            values = {"state": state, "summary": run.summary, "error": told, "ended_at": ended_at}
            conn.execute(update(runs).where(runs.c.id == run.id).values(values))
            left = (steps.c.run_id == run.id) & steps.c.state.in_(("PENDING", "RUNNING"))  # by a driver that was killed
            conn.execute(update(steps).where(left).values(state="CANCELLED", ended_at=ended_at))
        claim.release(conn)
    run.report("run.end" if state else "run.interrupted", state=state or "RESUMABLE")


def _ending(run: Run, error: BaseException | None) -> tuple[str | None, dict[str, Any] | None]:
    """The run's last state (None: it stays resumable) and its error."""
    if error is None:
        first = next(iter(run.failures.values()), None)
        return ("SUCCEEDED", None) if first is None else ("FAILED", to_json(first))
    if isinstance(error, RunCancelled):
        return ("CANCELLED" if error.found != "interrupted" else None), to_json(error)
    if isinstance(error, TemporaryError) or not isinstance(error, Exception):
        return None, None
    return "FAILED", to_json(error if isinstance(error, PetlRayError) else as_ours(error, f"pipeline of run {run.id}"))
