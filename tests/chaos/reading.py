"""What a home says of what was done: records, recorded rungs, attempts, releases, files. Read only, from outside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from sqlalchemy import select

from petl_ray.fingerprint import sha256_file
from petl_ray.orchestration import Home, progress, runs
from petl_ray.orchestration.claims import holders
from petl_ray.orchestration.home import Opened, opened
from petl_ray.store.local import LocalStore
from petl_ray.store.tables import claims, events, facts, promotions, steps

Rung = tuple[str, int, int]  # step, trial, rung


@dataclass(frozen=True)
class Kept:
    """What must outlive a kill: by step, the record's bytes and the attempts of what is committed; by (step, key),
    every fact with its fence and time; by id, the promotion rows; by model, the versions MLflow knows."""

    records: dict[str, bytes]
    attempts: dict[str, int]
    facts: dict[tuple[str, str], tuple[Any, int, float]]
    promotions: dict[int, tuple[str, str, int]]
    versions: dict[str, list[str]]
    newest_event: int

    @property
    def rungs(self) -> set[Rung]:
        """The rungs that are recorded."""
        split = [(step, *key.split("/")) for step, key in self.facts if "/" in key and not key.endswith("/cost")]
        return {(step, int(trial), int(rung)) for step, trial, rung in split}


def kept(home: Home) -> Kept:
    """Everything that `home` keeps now."""
    place = opened(home)
    keys = [key for key in place.store.list("steps/") if key.endswith("/record.json")]
    records = {key.split("/")[1]: place.store.read(key) or b"" for key in keys}
    with place.database.read() as conn:
        tried = conn.execute(select(steps.c.name, steps.c.attempts)).all()
        known = conn.execute(select(facts)).all()
        judged = conn.execute(select(promotions)).all()
        newest = conn.execute(select(events.c.id).order_by(events.c.id.desc()).limit(1)).scalar_one_or_none()
    return Kept(
        records=records,
        attempts={row.name: row.attempts for row in tried if row.name in records},
        facts={(row.step, row.key): (row.value, row.fence, row.recorded_at) for row in known},
        promotions={row.id: (row.task, row.action, row.version) for row in judged},
        versions=_versions(home),
        newest_event=newest or 0,
    )


def _versions(home: Home) -> dict[str, list[str]]:
    if not (home.path / "mlflow.db").exists():
        return {}
    client = MlflowClient(home.tracking_url, home.tracking_url)
    found: dict[str, list[str]] = {}
    for version in client.search_model_versions():
        found.setdefault(version.name, []).append(str(version.version))
    return found


def assert_nothing_lost(home: Home, before: Kept) -> None:
    """What was kept before is kept as it was: the same attempt's record, the same owner's fact, the same rows."""
    now = kept(home)
    assert {name: now.records[name] for name in before.records} == before.records
    assert {name: now.attempts[name] for name in before.attempts} == before.attempts
    assert {key: now.facts[key] for key in before.facts} == before.facts
    assert {key: now.promotions[key] for key in before.promotions} == before.promotions


def assert_nothing_lost_or_redone(home: Home, before: Kept) -> None:
    """Nothing is lost, and no event after what was kept tells of its being computed again."""
    assert_nothing_lost(home, before)
    with opened(home).database.read() as conn:
        told = conn.execute(select(events).where(events.c.id > before.newest_event)).all()
    begun = {row.step for row in told if row.event == "step.start"}
    assert begun.isdisjoint(before.attempts), "a committed step was begun again"
    rungs = [row for row in told if row.event == "search.rung" and not row.facts["replayed"]]
    trained = {(row.step, row.facts["trial"], row.facts["rung"]) for row in rungs}
    assert trained.isdisjoint(before.rungs), "a recorded rung was trained again"


def outcomes(home: Home, run_id: str) -> dict[str, str]:
    """The outcome's digest of every step of a run that could be found again, by label."""
    return {one["label"]: one["outcome_digest"] for one in shown_steps(home, run_id) if one["kind"] == "make"}


def shown_steps(home: Home, run_id: str) -> list[dict[str, Any]]:
    """Every step of a run, as `petl-ray runs show --json` has them."""
    found: list[dict[str, Any]] = runs.show(home, run_id)["steps"]
    return found


def the_run(home: Home) -> dict[str, Any]:
    """The only run of a home."""
    (only,) = runs.ls(home)
    return only


def assert_finished_like(home: Home, reference: dict[str, str]) -> None:
    """The home's only run has succeeded with the digests of `reference`, and released every task exactly once."""
    only = the_run(home)
    assert only["state"] == "SUCCEEDED"
    found = shown_steps(home, only["id"])
    given_up = [one["verb"] for one in found if one["state"] != "SUCCEEDED"]
    assert set(given_up) <= {"deploy"}, "a killed driver's servers are deployed anew, every other step is taken up"
    assert outcomes(home, only["id"]) == reference
    now = kept(home)
    assert now.versions == {"petl-ray.mood": ["1"], "petl-ray.time": ["1"]}
    assert sorted(task for task, _, _ in now.promotions.values()) == ["mood", "time"]
    assert {one["name"] for one in found if one["state"] == "SUCCEEDED"} <= set(now.records)
    assert set(now.records) <= {one["name"] for one in found}
    assert_nothing_half_written(opened(home), set(now.records))


def assert_nothing_half_written(place: Opened, done: set[str]) -> None:
    """Objects are what their names say; below finished steps lies the record and no checkpoint;
    the places where attempts worked are gone."""
    assert isinstance(place.store, LocalStore)
    for path in sorted((place.store.root / "objects").rglob("*")):
        assert path.is_dir() or sha256_file(path) == path.name
    loose = [key for key in place.store.list("steps/") if key.split("/")[1] in done]
    assert [key for key in loose if not key.endswith("/record.json")] == []
    assert list((place.home.scratch / "work").iterdir()) == []


def checkpointed_steps(home: Home) -> dict[str, int]:
    """By step of training: the optimizer step of its newest durable checkpoint."""
    place = opened(home)
    with place.database.read() as conn:
        names = conn.execute(select(steps.c.name).where(steps.c.verb == "train")).scalars().all()
    with TemporaryDirectory() as target:
        found = {name: progress.newest(place.store, name, Path(target)) for name in names}
    return {name: int(one.note["step"]) for name, one in found.items() if one is not None}


def validated_steps(home: Home, name: str, after_event: int) -> list[int]:
    """The optimizer steps at which a training was validated, as told after an event."""
    with opened(home).database.read() as conn:
        told = conn.execute(select(events).where(events.c.id > after_event, events.c.step == name)).all()
    return [int(row.facts["step"]) for row in told if row.event == "train.validated"]


def states(home: Home, verb: str) -> list[str]:
    """The states of all steps of a verb, as far as the journal has them."""
    with opened(home).database.read() as conn:
        return list(conn.execute(select(steps.c.state).where(steps.c.verb == verb)).scalars())


def times_computed(home: Home) -> dict[str, int]:
    """How often each step ended in an outcome of its own, over all runs; what was found does not count."""
    with opened(home).database.read() as conn:
        return Counter(conn.execute(select(events.c.step).where(events.c.event == "step.done")).scalars())


def is_quiet(home: Home) -> bool:
    """Whether nobody alive holds anything: workers outlive their driver by seconds and go on recording."""
    place = opened(home)
    with place.database.read() as conn:
        names = conn.execute(select(claims.c.name)).scalars().all()
        return not holders(place.database, conn, names)


def expired(home: Home, name: str) -> bool:
    """Whether the claim of that name has run out on the database's clock."""
    place = opened(home)
    with place.database.read() as conn:
        until = conn.execute(select(claims.c.expires_at).where(claims.c.name == name)).scalar_one()
        return bool(until <= place.database.now(conn))


def told(home: Home, event: str) -> int:
    """How often an event was told, over all runs."""
    with opened(home).database.read() as conn:
        return len(conn.execute(select(events.c.id).where(events.c.event == event)).all())
