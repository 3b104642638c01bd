"""A run that executes nothing: the same calls as `Run`, answered by what is known, with the reason of every miss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from petl_ray.artifact import Artifact
from petl_ray.errors import PetlRayError
from petl_ray.fingerprint import fingerprint
from petl_ray.orchestration import journal, records
from petl_ray.orchestration.home import Home, opened
from petl_ray.orchestration.placement import Placement
from petl_ray.orchestration.run import Outcomes
from petl_ray.orchestration.why import question_of, why_miss
from petl_ray.spec import Spec
from petl_ray.verb import Question, Resources, Verb

T = TypeVar("T")
R = TypeVar("R")


class OutcomeUnknown(PetlRayError):
    """A pipeline asked what is in an outcome that has not been computed yet: here the rehearsal ends."""


class Unknown(Artifact):
    """Stands for the outcome of a step that would be executed. It may be handed on; what is in it nobody knows yet."""

    from_label: str

    def __getattr__(self, item: str) -> Any:
        if item.startswith("_"):
            raise AttributeError(item)
        raise OutcomeUnknown(item, "not known yet", f"it comes from {self.from_label}")

    @property
    def digest(self) -> str:
        """Nobody knows it before the step was executed."""
        raise OutcomeUnknown("digest", "not known yet", f"it comes from {self.from_label}")


@dataclass(frozen=True)
class PlannedStep:
    """One step of a rehearsal. `name` is None where an input is unknown; `spec` is what would be asked."""

    verb: str
    label: str
    status: Literal["hit", "miss", "unknown"]
    why: str
    name: str | None
    resources: Resources
    spec: Spec
    kind: Literal["make", "do"] = "make"


class Rehearsal:
    """The API of `Run` without any effect; `steps` is what a run would do, in order."""

    def __init__(self, home: Home, placement: Placement | None = None) -> None:
        self.home = home
        self.id = "rehearsal"
        self.steps: list[PlannedStep] = []
        self.failures: dict[str, PetlRayError] = {}
        self.summary: Any = None
        self._opened = opened(home)
        self._placement = placement or Placement()
        self._item = ""

    def make(self, verb: Verb, spec: Spec, *inputs: Artifact, label: str | None = None) -> Artifact:
        """The outcome if it stands, else an `Unknown` in its place."""
        return self._step(verb, spec, inputs, label or f"{verb.name} {self._item}".strip())

    def pack(self, verb: Verb, questions: Sequence[Question], *, label: str | None = None) -> Outcomes[Artifact]:
        """Each question as `make`."""
        head = label or verb.name
        return Outcomes({one.key: self._step(verb, one.spec, one.inputs, f"{head} {one.key}") for one in questions})

    def each(self, fn: Callable[[T], R], items: Mapping[str, T]) -> Outcomes[R]:
        """One item after the other; an item whose function needs what is unknown is left out."""
        found: dict[str, R] = {}
        failures: dict[str, PetlRayError] = {}
        outer = self._item
        for key, item in items.items():
            self._item = f"{outer}/{key}" if outer else key
            try:
                found[key] = fn(item)
            except PetlRayError as error:
                failures[key] = error
        self._item = outer
        return Outcomes(found, failures)

    def do(self, verb: Verb, spec: Spec, *inputs: Artifact, label: str | None = None) -> Artifact:
        """An effect is always done again by a new run."""
        told = label or f"{verb.name} {self._item}".strip()
        if (waits := _waits(inputs)) is not None:
            return self._note(verb, spec, told, "unknown", waits, None, "do")
        return self._note(verb, spec, told, "miss", "an effect: every run does it once", None, "do")

    def check(self) -> None:
        """Nobody stops a rehearsal."""

    def report(self, event: str, /, **facts: Any) -> None:
        """A rehearsal shows nothing on its way."""

    def _step(self, verb: Verb, spec: Spec, inputs: Sequence[Artifact], label: str) -> Artifact:
        if (waits := _waits(inputs)) is not None:
            return self._note(verb, spec, label, "unknown", waits, None)
        name = fingerprint(verb.identity, spec, inputs)
        standing = records.find(self._opened.store, name)
        if standing is not None:
            self._note(verb, spec, label, "hit", "", name)
            return standing.artifact
        with self._opened.database.read() as conn:
            before = journal.last_question(conn, verb.name, label)
        return self._note(verb, spec, label, "miss", why_miss(question_of(verb, spec, inputs), before), name)

    def _note(
        self,
        verb: Verb,
        spec: Spec,
        label: str,
        status: Literal["hit", "miss", "unknown"],
        why: str,
        name: str | None,
        kind: Literal["make", "do"] = "make",
    ) -> Unknown:
        given = self._placement.resources(verb.name)
        self.steps.append(PlannedStep(verb.name, label, status, why, name, given, spec, kind))
        return Unknown(from_label=label)


def rehearse(home: Home, placement: Placement | None, pipeline: Callable[[Any], Any]) -> list[PlannedStep]:
    """Every step that `pipeline` would take, up to the first that depends on what is in an unknown outcome."""
    rehearsal = Rehearsal(home, placement)
    with contextlib.suppress(OutcomeUnknown):
        pipeline(rehearsal)
    return rehearsal.steps


def _waits(inputs: Sequence[Artifact]) -> str | None:
    unknown = [one.from_label for one in inputs if isinstance(one, Unknown)]
    return f"waits for {', '.join(dict.fromkeys(unknown))}" if unknown else None
