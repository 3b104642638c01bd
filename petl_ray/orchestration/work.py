"""One job from claim to commit, in whichever process does the work: claim, look again, answer, commit, release.

A job is one execution of a verb for one question or a pack of them. Whoever works also commits; the driver only waits.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from petl_ray.artifact import Artifact
from petl_ray.errors import ClaimLost, PermanentError, PetlRayError, RunCancelled, TemporaryError
from petl_ray.orchestration import journal, records
from petl_ray.orchestration.claims import LASTS_S, Claim, take
from petl_ray.orchestration.failures import as_ours
from petl_ray.orchestration.faults import fault
from petl_ray.orchestration.home import Home, Opened, opened
from petl_ray.orchestration.journal import Entry
from petl_ray.orchestration.owner import Owner
from petl_ray.orchestration.pulse import Pulse
from petl_ray.orchestration.retry import patiently
from petl_ray.orchestration.step import ClaimedStep
from petl_ray.spec import Spec
from petl_ray.verb import Question, Resources, Verb


@dataclass(frozen=True)
class Asked:
    """One question and the journal's view of it."""

    entry: Entry
    key: str
    spec: Spec
    inputs: tuple[Artifact, ...] = ()


@dataclass(frozen=True)
class Job:
    """What one execution is handed. `packed` asks for the packed form of the verb, if there is one."""

    home: Home
    run_id: str
    plan_digest: str
    verb: Verb
    asked: tuple[Asked, ...]
    resources: Resources = field(default_factory=Resources)
    packed: bool = False
    lasts_s: float = LASTS_S


@dataclass(frozen=True)
class Reply:
    """What became of one question: an artifact, an error, or neither where somebody else holds the step (busy)."""

    name: str
    artifact: Artifact | None = None
    error: PetlRayError | None = None

    @property
    def is_busy(self) -> bool:
        """Whether somebody else is at it."""
        return self.artifact is None and self.error is None


def work(job: Job, pulse: Pulse) -> list[Reply]:
    """Answer every question of `job` that can be claimed; one Reply each, in order. Errors are replies, not raised.

    KeyboardInterrupt passes, after the claims were given back.
    """
    replies: dict[str, Reply] = {}
    try:
        place = opened(job.home)
        held = patiently(lambda: _claim(place, job), pulse.check)
    except PetlRayError as error:
        return [Reply(one.entry.name, error=error) for one in job.asked]
    pulse.watch(list(held.values()))
    try:
        mine = [one for one in job.asked if one.entry.name in held]
        for one in mine:
            fault(job.verb.name, "claimed")
            pulse.outbox.post(job.run_id, "step.start", one.entry.name, **_shown(one.entry), why=one.entry.why)
        todo = [one for one in mine if not _already(place, one, held[one.entry.name], replies, pulse)]
        _answer(place, job, todo, held, replies, pulse)
    finally:
        pulse.unwatch(list(held.values()))
        _release(place, [claim for name, claim in held.items() if name not in replies])
    return [replies.get(one.entry.name, Reply(one.entry.name)) for one in job.asked]


def _claim(place: Opened, job: Job) -> dict[str, Claim]:
    """Claim what is free and note in the same transaction that it runs."""
    owner = Owner.new()
    with place.database.begin(durable=False) as conn:
        held = take(place.database, conn, [one.entry.name for one in job.asked], owner, job.lasts_s)
        now = place.database.now(conn)
        for one in job.asked:
            if one.entry.name in held:
                journal.running(conn, one.entry, now)
    return held


def _already(place: Opened, one: Asked, claim: Claim, replies: dict[str, Reply], pulse: Pulse) -> bool:
    """Whether an outcome has come to stand before the claim was ours; it is adopted then."""
    try:
        standing = patiently(lambda: records.find(place.store, one.entry.name), pulse.check)
        if standing is not None:
            replies[one.entry.name] = _settle(place, one, claim, standing.artifact, pulse, hit=True)
        return standing is not None
    except PetlRayError as error:
        replies[one.entry.name] = _fail(place, one, claim, error, pulse)
        return True


def _answer(
    place: Opened, job: Job, todo: list[Asked], held: Mapping[str, Claim], replies: dict[str, Reply], pulse: Pulse
) -> None:
    """Execute the verb, in its packed form or question by question, and commit each outcome as soon as it is known."""
    steps = [ClaimedStep(place, held[one.entry.name], one.entry, job.resources, pulse, job.plan_digest) for one in todo]
    began = time.monotonic()
    try:
        if job.packed and job.verb.packed is not None and job.resources.workers == 1 and todo:
            for at, outcome in _answer_all(job, todo, steps):
                one, step = todo[at], steps[at]
                _log_notes(job, one, outcome)
                replies[one.entry.name] = _conclude(place, one, step, outcome, pulse, time.monotonic() - began)
            return
        for one, step in zip(todo, steps, strict=True):
            began = time.monotonic()
            outcome = _answer_one(job, one, step)
            _log_notes(job, one, outcome)
            replies[one.entry.name] = _conclude(place, one, step, outcome, pulse, time.monotonic() - began)
    finally:
        for step in steps:
            with contextlib.suppress(PetlRayError):  # what stays behind are checkpoints of a step that is done
                reply = replies.get(step.name)
                step.close(done=reply is not None and reply.artifact is not None)


def _answer_one(job: Job, one: Asked, step: ClaimedStep) -> Artifact | PetlRayError:
    try:
        return job.verb(one.spec, *one.inputs, step=step)
    except Exception as error:  # noqa: BLE001 - whatever a verb raises is this question's failure, told in our words
        return _told(job, [one], error)


def _answer_all(job: Job, todo: list[Asked], steps: list[ClaimedStep]) -> Iterator[tuple[int, Artifact | PetlRayError]]:
    """Index and outcome of every question once, each as soon as the verb knows it."""
    questions = [Question(one.key, one.spec, one.inputs) for one in todo]
    owed = set(range(len(todo)))
    try:
        for at, outcome in job.verb.answer_all(questions, steps):
            if at in owed:
                owed.remove(at)
                yield at, outcome if isinstance(outcome, Artifact) else as_ours(outcome, todo[at].entry.label)
    except Exception as error:  # noqa: BLE001 - whatever a packed verb raises fails every question still open
        told = _told(job, [todo[at] for at in sorted(owed)] or todo, error)
        yield from ((at, told) for at in sorted(owed))
        return
    found = f"{len(todo) - len(owed)} answers to {len(todo)} questions"
    missing = PermanentError(f"verb {job.verb.name}", found, "a packed verb owes one answer each")
    yield from ((at, missing) for at in sorted(owed))


def _told(job: Job, asked: list[Asked], error: Exception) -> PetlRayError:
    """The error in our words; what nobody foresaw leaves its traceback in the step's log."""
    if isinstance(error, PetlRayError):
        return error
    _log(job, asked, "".join(traceback.format_exception(error)))
    return as_ours(error, asked[0].entry.label if len(asked) == 1 else f"verb {job.verb.name}")


def _log_notes(job: Job, one: Asked, outcome: Artifact | PetlRayError) -> None:
    """What a verb has noted to an error that it foresaw as little, the traceback of its cause say, goes to the log too."""
    if isinstance(outcome, PetlRayError) and (notes := getattr(outcome, "__notes__", None)):
        _log(job, [one], "\n".join(notes))


def _log(job: Job, asked: list[Asked], text: str) -> None:
    for one in asked:
        with contextlib.suppress(OSError):
            path = job.home.log_of(job.run_id, one.entry.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as log:
                log.write(text)


def _conclude(
    place: Opened, one: Asked, step: ClaimedStep, outcome: Artifact | PetlRayError, pulse: Pulse, seconds: float
) -> Reply:
    if isinstance(outcome, PetlRayError):
        return _fail(place, one, step.claim, outcome, pulse)
    try:
        return patiently(lambda: _commit(place, one, step.claim, outcome, pulse, seconds), lambda: None)
    except PetlRayError as error:
        return _fail(place, one, step.claim, error, pulse)


def _commit(place: Opened, one: Asked, claim: Claim, outcome: Artifact, pulse: Pulse, seconds: float) -> Reply:
    """Manifest, record, journal row. Safe to repeat: the attempt is the same, so its own record is found as its own."""
    name, attempt = one.entry.name, f"{claim.fence:012d}-{claim.owner.attempt}"
    record = records.compose(place.store, name, one.entry.verb, outcome, attempt, seconds=round(seconds, 3))
    with place.database.read() as conn:
        claim.check(conn)
    standing = records.create(place.store, name, record)
    fault(one.entry.verb, "after-record")
    return _settle(place, one, claim, standing.artifact, pulse, hit=False, seconds=seconds)


def _settle(
    place: Opened, one: Asked, claim: Claim, outcome: Artifact, pulse: Pulse, *, hit: bool, seconds: float = 0.0
) -> Reply:
    """The journal row and the end of the claim, in one transaction."""
    with place.database.begin(durable=False) as conn:
        journal.succeeded(conn, one.entry, outcome, place.database.now(conn), hit=hit)
        claim.release(conn)
    fault(one.entry.verb, "after-journal")
    event = "step.hit" if hit else "step.done"
    pulse.outbox.post(one.entry.run_id, event, one.entry.name, **_shown(one.entry), seconds=round(seconds, 3))
    return Reply(one.entry.name, artifact=outcome)


def _fail(place: Opened, one: Asked, claim: Claim, error: PetlRayError, pulse: Pulse) -> Reply:
    """Note a failure and give the step back; one whose claim was lost parks without a word: it is somebody else's."""
    if isinstance(error, ClaimLost):
        return _park(one, pulse)
    state = (
        "PENDING" if isinstance(error, TemporaryError) else "CANCELLED" if isinstance(error, RunCancelled) else "FAILED"
    )
    try:
        with place.database.begin(durable=False) as conn:
            claim.check(conn)
            journal.failed(conn, one.entry, error, place.database.now(conn), state)
            claim.release(conn)
    except ClaimLost:  # the error came of it: the next owner has removed the files of this attempt
        return _park(one, pulse)
    except PetlRayError as worse:
        return Reply(one.entry.name, error=worse)
    pulse.outbox.post(
        one.entry.run_id, "step.failed", one.entry.name, **_shown(one.entry), error=str(error), state=state
    )
    return Reply(one.entry.name, error=error)


def _park(one: Asked, pulse: Pulse) -> Reply:
    pulse.outbox.post(one.entry.run_id, "step.parked", one.entry.name, **_shown(one.entry))
    return Reply(one.entry.name)


def _release(place: Opened, claims: list[Claim]) -> None:
    """Give back what was claimed and not concluded (an interrupt); best effort, since expiry does the same."""
    if claims:
        with contextlib.suppress(PetlRayError), place.database.begin(durable=False) as conn:
            for claim in claims:
                claim.release(conn)


def _shown(entry: Entry) -> dict[str, str]:
    return {"label": entry.label, "verb": entry.verb}
