"""promote: the gate judges a release, and the name moves or stays. Either way a row says why."""

from __future__ import annotations

from petl_ray.artifact import Release, Report
from petl_ray.errors import ConflictError, TemporaryError
from petl_ray.registry.gate import decide
from petl_ray.registry.measurable import why_unmeasurable
from petl_ray.registry.projection import project
from petl_ray.registry.promotions import Request, by_gate, champion, judged
from petl_ray.registry.spec import ALIAS, GateSpec
from petl_ray.store import Database, open_database
from petl_ray.verb import StepContext


def promote(spec: GateSpec, release: Release, report: Report, *, step: StepContext) -> Release:
    """Judge `release` by `report`; the returned Release is `champion` or `refused`, with the reasons.

    A refused candidate leaves the champion as it is. The same step asked again gives the same answer. MLflow's alias
    follows; where MLflow is away the promotion stands and the alias is repaired later.

    Uses the services `database`, `tracking` and where given `run` and `actor`. Raises ConflictError if the report is
    about another adapter, TemporaryError if the database is away.
    """
    if report.adapter_digest != release.adapter.digest:
        raise ConflictError(
            f"gate.{release.task}",
            f"the report is about adapter {report.adapter_digest[:12]}, not {release.adapter.digest[:12]}",
            "a release is judged by what was measured of it",
            "Hand in its own report",
        )
    database = open_database(step.services["database"])
    run_id = step.services.get("run")
    request = Request(
        key=f"promote:{step.name}",
        release=release,
        actor=step.services.get("actor") or (f"run {run_id}" if run_id else "gate"),
        run_id=run_id,
    )
    why = _unmeasurable(database, release, report)
    row = judged(database, request, by_gate(lambda digest: decide(spec, report, digest, why.get(digest or ""))))
    step.report("promote.decided", task=row.task, version=row.version, action=row.action, reasons=list(row.reasons))
    try:
        for repair in project(database, step.services["tracking"], task=row.task):
            step.report("promote.projected", **repair.facts())
    except TemporaryError as error:
        step.report("promote.projection_waits", task=row.task, why=str(error))
    return row.release


def _unmeasurable(database: Database, release: Release, report: Report) -> dict[str, str]:
    """The digest of a champion that the report lacks because it cannot be measured again, with the reason; else nothing.

    Looked at before the name is judged: reading a base takes long, and judging holds a transaction.
    """
    standing = champion(database, release.task)
    if standing is None or standing.adapter_digest in (report.rival_digests.get(ALIAS), release.adapter.digest):
        return {}
    why = why_unmeasurable(standing.release.adapter, release.adapter.task_type, release.adapter.base)
    return {standing.adapter_digest: why} if why else {}
