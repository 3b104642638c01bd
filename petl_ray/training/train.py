"""train: one question to one adapter; train_all: many questions side by side in the slots of one resident base.

A question that comes to its end gives its slot to the next one that waits, and its answer goes out at once. What may
share a pass with whom is `sharing.Sharing`'s business: on a CPU an outcome has the same bits in any company.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from petl_ray.artifact import Adapter, Dataset, FileEntry
from petl_ray.errors import CorruptionError, PetlRayError, PlanError, TrainingError
from petl_ray.fingerprint import canonical_json
from petl_ray.models.faults import is_device_fault
from petl_ray.training.failures import as_failure
from petl_ray.training.golden import GOLDEN_FILE, write_golden
from petl_ray.training.occupant import Occupant
from petl_ray.training.room import plan_group
from petl_ray.training.session import Session, open_session
from petl_ray.training.spec import TrainSpec
from petl_ray.verb import SHARED_FIELDS, Question, StepContext

FILES = ("adapter_model.safetensors", "adapter_config.json", "card.json", GOLDEN_FILE)
REPORT_EVERY_S = 1.0

Answer = Adapter | PetlRayError
T = TypeVar("T")


def train(spec: TrainSpec, dataset: Dataset, *, step: StepContext) -> Adapter:
    """Train one adapter; continues from the step's newest checkpoint.

    Writes FILES and the trace `history.jsonl` below `step.out`. Raises TrainingError where the loss is no longer
    finite, DataError, PlanError or BaseModelError for a question that cannot be trained, RunCancelled and ClaimLost
    as `step.check` does.
    """
    ((_, answer),) = train_all([Question(dataset.task, spec, (dataset,))], [step])
    if isinstance(answer, PetlRayError):
        raise answer
    return answer


def train_all(questions: Sequence[Question], steps: Sequence[StepContext]) -> Iterator[tuple[int, Answer]]:
    """(index, Adapter or error) of each question as it is known; a question that fails leaves the others alone.

    On a CPU results are bit for bit those of `train` for each question alone; on a GPU they agree to rounding.
    """
    groups: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault(_session_of(question), []).append(index)
    for members in groups.values():
        yield from _train_group({index: (questions[index], steps[index]) for index in members})


def _session_of(question: Question) -> str:
    """Questions with equal names can share one session."""
    spec = question.spec
    if not isinstance(spec, TrainSpec):
        raise PlanError(question.key, f"got a {type(spec).__name__}", "training answers TrainSpecs", "Give one")
    return canonical_json([getattr(spec, name) for name in SHARED_FIELDS])


def _train_group(group: Mapping[int, tuple[Question, StepContext]]) -> Iterator[tuple[int, Answer]]:
    template, first = next(iter(group.values()))
    assert isinstance(template.spec, TrainSpec)
    slots = min(len(group), first.resources.slots)
    try:
        session = open_session(template.spec, slots=slots, threads=first.resources.cpus)
    except Exception as error:  # noqa: BLE001 - whatever it is, all that need this base are told of it
        told = as_failure("training", error)
        yield from ((index, told) for index in group)
        return
    try:
        slots, refused = plan_group(session, slots, group)
        yield from refused.items()
        yield from _side_by_side(session, slots, {index: one for index, one in group.items() if index not in refused})
    except Exception as error:  # nobody's where it is the device's: whoever is open goes on in another process
        if is_device_fault(error):
            raise as_failure("training", error) from error
        raise
    finally:
        session.close()


def _side_by_side(
    session: Session, slots: int, group: Mapping[int, tuple[Question, StepContext]]
) -> Iterator[tuple[int, Answer]]:
    waiting = list(group)
    courses: dict[str, Course] = {}
    while waiting or courses:
        while waiting and len(courses) < slots:
            index = waiting.pop(0)
            question, step = group[index]
            key = str(index)  # questions of several tasks may have equal keys
            began = _told(question.key, partial(Course.begin, session, key, question, step))
            if isinstance(began, Course):
                courses[key] = began
            else:
                yield index, began
        turn = session.turn()
        for key in [*turn.arrived, *turn.failed]:
            course = courses[key]
            answer: Answer | None = turn.failed.get(key)
            if answer is None:
                answer = _told(course.question.key, partial(course.arrived, turn.arrived[key]))
            if answer is not None:
                del courses[key]
                session.drop(key)
                yield int(key), answer


def _told(what: str, act: Callable[[], T]) -> T | PetlRayError:
    """What `act` gives, or its failure as an error of ours: whatever breaks one question must not sink its neighbours."""
    try:
        return act()
    except Exception as error:  # noqa: BLE001 - one question's failure, told in our words
        return as_failure(what, error)


@dataclass(frozen=True)
class Course:
    """One question on its way through a session: from validation to validation, to the adapter at the end."""

    session: Session
    key: str
    question: Question
    step: StepContext
    watcher: Watcher

    @classmethod
    def begin(cls, session: Session, key: str, question: Question, step: StepContext) -> Course:
        """Take a slot, continue from the newest checkpoint and aim at the first validation."""
        spec, dataset = question.spec, question.inputs[0]
        assert isinstance(spec, TrainSpec)
        assert isinstance(dataset, Dataset), f"train takes a Dataset, got a {type(dataset).__name__}"
        step.check()
        progress = step.load_progress()
        data = step.fetch(dataset)
        try:
            session.admit(key, spec, data, progress.directory if progress else None)
        except CorruptionError:
            session.admit(key, spec, data)  # a checkpoint that cannot be continued costs its work, not the step
        watcher = Watcher(session, key, question.key, step)
        session.watch(key, watcher)
        session.aim(key, next_share(session, key))
        return cls(session, key, question, step, watcher)

    def arrived(self, metrics: Mapping[str, float]) -> Adapter | None:
        """What a validation has come to: the adapter after the last one, else None and the next aim.

        Raises TrainingError where training has diverged.
        """
        occupant = self.session.occupant(self.key)
        refuse_divergence(self.question.key, occupant, metrics)
        self.watcher.validated(occupant)
        if occupant.step < occupant.steps:
            self.session.aim(self.key, next_share(self.session, self.key))
            return None
        self.watcher.save(occupant)
        return finish(self.session, occupant, cast("Dataset", self.question.inputs[0]), self.step)


def next_share(session: Session, key: str) -> float:
    """The share of the horizon at which `key` is to be validated next."""
    occupant = session.occupant(key)
    count = round(1 / occupant.spec.validate_every)
    shares = [min(1.0, turn * occupant.spec.validate_every) for turn in range(1, count)]
    return next((share for share in shares if session.target_step(key, share) > occupant.scored_step), 1.0)


def refuse_divergence(what: str, occupant: Occupant, metrics: Mapping[str, float]) -> None:
    """TrainingError if these are the metrics of a slot that diverged."""
    if "diverged" in metrics:
        raise TrainingError(
            what,
            f"loss or gradients are not finite at step {occupant.step} of {occupant.steps}",
            f"learning rate {occupant.spec.learning_rate:g} may be too high for this base",
            "Lower learning_rate or gradient_clip",
        )


class Keeps(Protocol):
    """What finishing needs of a step; a `StepContext` is one."""

    @property
    def out(self) -> Path:
        """See `StepContext.out`."""

    def keep(self, *paths: str) -> tuple[FileEntry, ...]:
        """See `StepContext.keep`."""


def finish(session: Session, occupant: Occupant, dataset: Dataset, step: Keeps) -> Adapter:
    """Write the files of an occupant that has reached the end of its course, and name them."""
    session.export(occupant.key, step.out)
    write_golden(session.loaded, occupant.rows, step.out)
    lines = [json.dumps(point, sort_keys=True) + "\n" for point in occupant.history]
    (step.out / "history.jsonl").write_text("".join(lines), encoding="utf-8")
    spec, best = occupant.spec, occupant.best
    assert best is not None, "a course ends with a validation"
    return Adapter(
        task=dataset.task,
        task_type=dataset.task_type,
        labels=dataset.labels,
        method=spec.method.kind,
        base=spec.base.pinned,
        precision=spec.base.precision,
        quantization=spec.base.quantization,
        trained_parameters=occupant.trained_parameters,
        base_parameters=session.loaded.parameters,
        validation_score=best.score,
        files=step.keep(*FILES),
        traces=step.keep("history.jsonl"),
        about={
            "seconds": round(occupant.elapsed_s, 3),
            "steps": occupant.step,
            "best_step": best.step,
            "tokens": occupant.tokens,
            "truncated_rows": occupant.rows.truncated,
            "memory": session.memory(),
        },
    )


def run_course(session: Session, key: str, watcher: Watcher) -> None:
    """Train `key` alone to the end of its horizon, validating on the way; raises TrainingError if it diverges."""
    occupant = session.occupant(key)
    session.watch(key, watcher)
    while occupant.scored_step < occupant.steps:
        metrics = session.advance({key: next_share(session, key)})[key]
        refuse_divergence(key, occupant, metrics)
        watcher.validated(occupant)
    watcher.save(occupant)


class Watched(Protocol):
    """What a course needs of a step; a `StepContext` is one."""

    def check(self) -> None:
        """See `StepContext.check`."""

    def report(self, event: str, /, **facts: Any) -> None:
        """See `StepContext.report`."""

    def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
        """See `StepContext.save_progress`."""


class Watcher:
    """Between steps: shows progress about every second, saves a checkpoint when it is due, stops when told to."""

    def __init__(self, session: Session, key: str, label: str, step: Watched) -> None:
        self._session, self._key, self._label, self._step = session, key, label, step
        now = time.monotonic()
        self._reported, self._saved = now, now
        occupant = session.occupant(key)
        self._at = (occupant.step, occupant.tokens)

    def __call__(self, occupant: Occupant) -> None:
        now = time.monotonic()
        if now - self._reported >= REPORT_EVERY_S:
            self._step.check()
            self._report(occupant, now)
        if now - self._saved >= occupant.spec.checkpoint_every_s:
            self.save(occupant)

    def validated(self, occupant: Occupant) -> None:
        """Show what validation said."""
        self._step.check()
        facts = {name: round(occupant.metrics[name], 6) for name in ("score", "loss")}
        self._step.report("train.validated", key=self._label, step=occupant.step, metric=occupant.spec.metric, **facts)

    def save(self, occupant: Occupant) -> None:
        """Make a checkpoint of this moment durable."""
        with tempfile.TemporaryDirectory() as directory:
            self._session.save(self._key, Path(directory))
            self._step.save_progress(Path(directory), {"step": occupant.step, "steps": occupant.steps})
        self._saved = time.monotonic()

    def _report(self, occupant: Occupant, now: float) -> None:
        seconds = now - self._reported
        steps, tokens = occupant.step - self._at[0], occupant.tokens - self._at[1]
        self._step.report(
            "train.step",
            key=self._label,
            step=occupant.step,
            steps=occupant.steps,
            loss=round(occupant.metrics["train_loss"], 6),
            tokens_per_s=round(tokens / seconds, 1),
            eta_s=round((occupant.steps - occupant.step) * seconds / max(steps, 1), 1),
        )
        self._reported, self._at = now, (occupant.step, occupant.tokens)
