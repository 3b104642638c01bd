"""The durable run that a pipeline is handed: `make`, `pack`, `each` and `do`. Between these calls a pipeline is
deterministic; everything else (claims, commits, retries, the journal) happens behind them.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from petl_ray.artifact import Artifact
from petl_ray.errors import ClaimLost, PetlRayError, RunCancelled, TemporaryError
from petl_ray.fingerprint import fingerprint, sha256_of
from petl_ray.orchestration import claims, journal, records
from petl_ray.orchestration.claims import Claim
from petl_ray.orchestration.executor import Executor
from petl_ray.orchestration.faults import fault
from petl_ray.orchestration.home import Opened
from petl_ray.orchestration.journal import Entry
from petl_ray.orchestration.pulse import Pulse
from petl_ray.orchestration.retry import TRIES, patiently, pause_s, wait
from petl_ray.orchestration.step import sweep
from petl_ray.orchestration.why import question_of, why_miss
from petl_ray.orchestration.work import Asked, Job, Reply, work
from petl_ray.spec import Spec
from petl_ray.verb import Question, Resources, Verb

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A", bound=Artifact)

_POLL_S = 0.05
_SLOWEST_POLL_S = 1.0

_item: contextvars.ContextVar[str] = contextvars.ContextVar("petl_ray_item", default="")


class Outcomes(Mapping[str, T], Generic[T]):
    """What succeeded, by key, in the order asked; `failures` says what became of the other keys."""

    def __init__(self, values: Mapping[str, T], failures: Mapping[str, PetlRayError] | None = None) -> None:
        self._values = dict(values)
        self.failures: dict[str, PetlRayError] = dict(failures or {})

    def __getitem__(self, key: str) -> T:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Outcomes({self._values!r}, failures={self.failures!r})"


class Run:
    """One durable run. `id` names it; `failures` holds what failed so far, by the step's label; `locked` is the locked
    plan (plain JSON) that it began with, `plan_digest` names it; `summary` (plain JSON) is kept in the journal when it
    ends."""

    def __init__(
        self,
        opened: Opened,
        run_id: str,
        plan_digest: str,
        claim: Claim,
        executor: Executor,
        pulse: Pulse,
        position: int,
    ) -> None:
        self.id, self.plan_digest = run_id, plan_digest
        self.home = opened.home
        self.failures: dict[str, PetlRayError] = {}
        self.summary: Any = None
        self.locked: dict[str, Any] = {}
        self._opened, self._claim, self._executor, self._pulse = opened, claim, executor, pulse
        self._positions = itertools.count(position)

    def make(self, verb: Verb[A], spec: Spec, *inputs: Artifact, label: str | None = None) -> A:
        """The answer of a pure verb, found if any run ever computed it, else computed, kept and found from now on.

        Raises the PetlRayError that its work ended in; RunCancelled and ClaimLost if this run must stop.
        """
        asked = self._asked(verb, Question(self._key(label), spec, inputs), label)
        return self._one(verb, asked, self._obtain(verb, [asked]))

    def pack(self, verb: Verb[A], questions: Sequence[Question], *, label: str | None = None) -> Outcomes[A]:
        """One outcome per question key. What is known is taken out first; the rest is answered in as few executions as
        the placement says (`packs`). A failure is its question's own.
        """
        asked = {one.key: self._asked(verb, one, f"{label or verb.name} {one.key}") for one in questions}
        replies = self._obtain(verb, list({one.entry.name: one for one in asked.values()}.values()), packed=True)
        found: dict[str, A] = {}
        failures: dict[str, PetlRayError] = {}
        for key, one in asked.items():
            reply = replies[one.entry.name]
            if reply.artifact is not None:
                found[key] = cast("A", reply.artifact)
            elif reply.error is not None:
                failures[key] = self.failures[one.entry.label] = reply.error
        return Outcomes(found, failures)

    def each(self, fn: Callable[[T], R], items: Mapping[str, T]) -> Outcomes[R]:
        """`fn` of every item, side by side. An item that raises a PetlRayError fails alone.

        Anything else that `fn` raises is a mistake in the pipeline and is raised when all items have ended.
        """
        found: dict[str, R] = {}
        failures: dict[str, PetlRayError] = {}
        stops: list[BaseException] = []

        def one(key: str, item: T) -> None:
            _item.set(f"{_item.get()}/{key}" if _item.get() else key)
            try:
                found[key] = fn(item)
            except (RunCancelled, ClaimLost) as stop:
                stops.append(stop)
            except PetlRayError as error:
                failures[key] = error
            except BaseException as mistake:  # noqa: BLE001 - raised below, in the thread that called
                stops.append(mistake)

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(one, key, item), daemon=True)
            for key, item in items.items()
        ]
        self._join(threads)
        if stops:
            raise stops[0]
        for key, error in failures.items():
            if not any(error is known for known in self.failures.values()):
                self.failures[key] = error
        return Outcomes({key: found[key] for key in items if key in found}, failures)

    def do(self, verb: Verb[A], spec: Spec, *inputs: Artifact, label: str | None = None) -> A:
        """An effect on the world, in this process: once in this run, again by the next. `verb` must be idempotent,
        since a run that dies between the effect and its record does it again when it resumes.
        """
        asked = self._asked(verb, Question(self._key(label), spec, inputs), label, kind="do")
        return self._one(verb, asked, self._obtain(verb, [asked]))

    def fetch(self, artifact: Artifact) -> Path:
        """A local read-only directory with the artifact's files, verified; see `records.fetch` for what it raises."""
        return patiently(lambda: records.fetch(self._opened.store, artifact, self.home.cache), self.check)

    def check(self) -> None:
        """Raise RunCancelled if somebody asked this run to stop, ClaimLost if another driver has taken it."""
        if self._claim.lost.is_set():
            raise claims.claim_lost(self._claim.name)
        self._pulse.check()

    def report(self, event: str, /, **facts: Any) -> None:
        """Show something about the whole run."""
        self._pulse.outbox.post(self.id, event, None, **facts)

    # -- one question ------------------------------------------------------------------------------------------------

    def _key(self, label: str | None) -> str:
        return _item.get() or label or ""

    def _asked(self, verb: Verb, question: Question, label: str | None, kind: str = "make") -> Asked:
        name = fingerprint(verb.identity, question.spec, question.inputs)
        told = label or f"{verb.name} {_item.get()}".strip()
        if kind == "do":
            times = self._claim.fence if verb.transient else 0  # each driver of a run has a fence of its own
            name = sha256_of({"do": self.id, "label": told, "step": name, "times": times})
        entry = Entry(
            run_id=self.id,
            name=name,
            position=next(self._positions),
            verb=verb.name,
            kind=kind,
            label=told,
            question=question_of(verb, question.spec, question.inputs),
        )
        return Asked(entry, question.key, question.spec, question.inputs)

    def _one(self, verb: Verb[A], asked: Asked, replies: Mapping[str, Reply]) -> A:
        reply = replies[asked.entry.name]
        if reply.artifact is not None:
            return cast("A", reply.artifact)
        assert reply.error is not None, f"{verb.name}: neither outcome nor error"
        self.failures[asked.entry.label] = reply.error
        raise reply.error

    # -- many questions ----------------------------------------------------------------------------------------------

    def _obtain(self, verb: Verb, asked: list[Asked], *, packed: bool = False) -> dict[str, Reply]:
        """A reply for every question by step name: found, computed here, or adopted from whoever computed it."""
        self.check()
        found = [self._find(one) for one in asked]
        replies = {reply.name: reply for reply in found if reply is not None}
        todo = [self._explained(one) for one in asked if one.entry.name not in replies]
        tries = 0
        while todo:
            try:
                answered = self._execute(verb, todo, packed)
            except TemporaryError as error:
                answered = [Reply(one.entry.name, error=error) for one in todo]
            by_name = {one.entry.name: one for one in todo}
            busy = [by_name[one.name] for one in answered if one.is_busy]
            again = [one for one in answered if isinstance(one.error, TemporaryError) and tries + 1 < TRIES]
            replies.update({one.name: one for one in answered if not one.is_busy and one not in again})
            if again:
                tries += 1
                self._back_off(again, tries)
                todo = [by_name[one.name] for one in again] + busy
            else:
                todo = self._await(busy, replies)
        for reply in replies.values():
            if isinstance(reply.error, RunCancelled):
                raise reply.error
        return replies

    def _find(self, one: Asked) -> Reply | None:
        """A hit, noted in the journal; None for a miss."""
        standing = patiently(lambda: records.find(self._opened.store, one.entry.name), self.check)
        if standing is None:
            return None
        self._adopt(one, standing.artifact)
        return Reply(one.entry.name, artifact=standing.artifact)

    def _adopt(self, one: Asked, outcome: Artifact) -> None:
        def note() -> bool:
            with self._opened.database.begin(durable=False) as conn:
                return journal.succeeded(conn, one.entry, outcome, self._opened.database.now(conn), hit=True)

        if patiently(note, self.check):
            with contextlib.suppress(PetlRayError):  # begun by this run, then killed: what lies about is of no use
                sweep(self._opened, one.entry.name)
        self._pulse.outbox.post(self.id, "step.hit", one.entry.name, label=one.entry.label, verb=one.entry.verb)

    def _explained(self, one: Asked) -> Asked:
        """The same question with the reason of its miss."""
        why = "an effect: every run does it once"
        if one.entry.kind == "make":
            with self._opened.database.read() as conn:
                before = journal.last_question(conn, one.entry.verb, one.entry.label)
            why = why_miss(one.entry.question, before)
        return Asked(Entry(**{**vars(one.entry), "why": why}), one.key, one.spec, one.inputs)

    def _execute(self, verb: Verb, todo: list[Asked], packed: bool) -> list[Reply]:
        if todo[0].entry.kind == "do":
            return work(self._job(verb, todo, self._executor.prepare(verb), False), self._pulse)
        resources = self._executor.admit(verb)
        jobs = [self._job(verb, part, resources, packed) for part in _parts(verb, todo, resources)]
        fault(verb.name, "submitted")
        return self._executor.answer(jobs, self._pulse, self.check)

    def _job(self, verb: Verb, asked: list[Asked], resources: Resources, packed: bool) -> Job:
        return Job(self.home, self.id, self.plan_digest, verb, tuple(asked), resources, packed, self._pulse.lasts_s)

    def _back_off(self, again: list[Reply], tries: int) -> None:
        errors = [one.error for one in again if isinstance(one.error, TemporaryError)]
        delay_s = max(pause_s(error, tries) for error in errors)
        self.report("run.retry", error=str(errors[0]), delay_s=round(delay_s, 2), tries=tries)
        wait(delay_s, self.check)

    def _await(self, busy: list[Asked], replies: dict[str, Reply]) -> list[Asked]:
        """Wait for what others hold, adopting outcomes as they come; what is left as soon as any of it is free."""
        for one in busy:
            self._pulse.outbox.post(self.id, "step.waiting", one.entry.name, label=one.entry.label, verb=one.entry.verb)
        poll_s = _POLL_S
        waiting = list(busy)
        free: list[Asked] = []
        while waiting and not free:
            wait(poll_s, self.check)
            poll_s = min(_SLOWEST_POLL_S, poll_s * 1.5)
            free = patiently(lambda: [one for one in waiting if self._is_free(one)], self.check)
            for one in list(waiting):
                reply = self._find(one)
                if reply is not None:
                    replies[reply.name] = reply
                    waiting.remove(one)
        return waiting if free else []

    def _is_free(self, one: Asked) -> bool:
        return claims.is_free(self._opened.database, one.entry.name)

    def _join(self, threads: list[threading.Thread]) -> None:
        """Wait for all; an interrupt tells the steps of this process to stop at their next check."""
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._pulse.interrupted.set()
            until = time.monotonic() + 5
            for thread in threads:
                thread.join(timeout=max(0.0, until - time.monotonic()))
            raise


def _parts(verb: Verb, todo: list[Asked], resources: Resources) -> list[list[Asked]]:
    """The questions dealt out to as many executions as the placement says; what drives Ray deals them out by itself."""
    count = 1 if verb.drives_ray else min(len(todo), max(1, resources.packs))
    return [todo[start::count] for start in range(count)]
