"""train: one question to one adapter; train_all: many questions, one after the other, over one resident base.

Questions of a pack share the loaded base, its tokenizer and the encoded rows, but not their forward passes: the bits
of a product depend on how many rows it has, and an outcome must not depend on which other questions were asked with
it. Training side by side in one pass is what `Session.advance` does when it is given several keys.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from petl_ray.artifact import Adapter, Dataset
from petl_ray.errors import CorruptionError, PetlRayError, PlanError, TrainingError
from petl_ray.fingerprint import canonical_json
from petl_ray.training.golden import GOLDEN_FILE, write_golden
from petl_ray.training.occupant import Occupant
from petl_ray.training.session import Session, open_session
from petl_ray.training.spec import TrainSpec
from petl_ray.verb import Question, StepContext

FILES = ("adapter_model.safetensors", "adapter_config.json", "card.json", GOLDEN_FILE)
REPORT_EVERY_S = 1.0


def train(spec: TrainSpec, dataset: Dataset, *, step: StepContext) -> Adapter:
    """Train one adapter; continues from the step's newest checkpoint.

    Writes FILES and the trace `history.jsonl` below `step.out`. Raises TrainingError where the loss is no longer
    finite, DataError, PlanError or BaseModelError for a question that cannot be trained, RunCancelled and ClaimLost
    as `step.check` does.
    """
    answer = train_all([Question(dataset.task, spec, (dataset,))], [step])[0]
    if isinstance(answer, PetlRayError):
        raise answer
    return answer


def train_all(questions: Sequence[Question], steps: Sequence[StepContext]) -> list[Adapter | PetlRayError]:
    """One Adapter or error for each question, in order; a question that fails leaves the others alone.

    Results are bit for bit those of `train` for each question alone.
    """
    answers: dict[int, Adapter | PetlRayError] = {}
    groups: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault(_session_of(question), []).append(index)
    for members in groups.values():
        _train_group({index: (questions[index], steps[index]) for index in members}, answers)
    return [answers[index] for index in range(len(questions))]


def _session_of(question: Question) -> str:
    """Questions with equal names can share one session."""
    spec = question.spec
    if not isinstance(spec, TrainSpec):
        raise PlanError(question.key, f"got a {type(spec).__name__}", "training answers TrainSpecs", "Give one")
    return canonical_json([spec.base, spec.task_type, spec.gradient_checkpointing])


def _train_group(group: dict[int, tuple[Question, StepContext]], answers: dict[int, Adapter | PetlRayError]) -> None:
    template, first = next(iter(group.values()))
    assert isinstance(template.spec, TrainSpec)
    try:
        session = open_session(template.spec, slots=1, threads=first.resources.cpus)
    except PetlRayError as error:
        answers.update(dict.fromkeys(group, error))
        return
    for index, (question, step) in group.items():
        try:
            answers[index] = _train_one(session, question, step)
        except PetlRayError as error:
            answers[index] = error
        except Exception as error:  # noqa: BLE001 — whatever breaks one question must not sink its neighbours
            answers[index] = TrainingError(question.key, type(error).__name__, str(error)[:500])
    session.close()


def _train_one(session: Session, question: Question, step: StepContext) -> Adapter:
    spec, dataset = question.spec, question.inputs[0]
    assert isinstance(spec, TrainSpec)
    assert isinstance(dataset, Dataset), f"train takes a Dataset, got a {type(dataset).__name__}"
    step.check()
    progress = step.load_progress()
    data = step.fetch(dataset)
    try:
        session.admit(question.key, spec, data, progress.directory if progress else None)
    except CorruptionError:
        session.admit(question.key, spec, data)  # a checkpoint that cannot be continued costs its work, not the step
    try:
        run_course(session, question.key, Watcher(session, question.key, step))
        return _finish(session, session.occupant(question.key), dataset, step)
    finally:
        session.drop(question.key)


def _finish(session: Session, occupant: Occupant, dataset: Dataset, step: StepContext) -> Adapter:
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
        },
    )


def run_course(session: Session, key: str, watcher: Watcher) -> None:
    """Train `key` to the end of its horizon, validating on the way; raises TrainingError if it diverges."""
    occupant = session.occupant(key)
    session.watch(key, watcher)
    count = round(1 / occupant.spec.validate_every)
    shares = [min(1.0, turn * occupant.spec.validate_every) for turn in range(1, count)] + [1.0]
    for share in shares:
        if occupant.scored_step >= session.target_step(key, share):
            continue
        metrics = session.advance({key: share})[key]
        if "diverged" in metrics:
            raise TrainingError(
                key,
                f"loss or gradients are not finite at step {occupant.step} of {occupant.steps}",
                f"learning rate {occupant.spec.learning_rate:g} may be too high for this base",
                "Lower learning_rate or gradient_clip",
            )
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

    def __init__(self, session: Session, key: str, step: Watched) -> None:
        self._session, self._key, self._step = session, key, step
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
        self._step.report("train.validated", key=self._key, step=occupant.step, metric=occupant.spec.metric, **facts)

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
            key=self._key,
            step=occupant.step,
            steps=occupant.steps,
            loss=round(occupant.metrics["train_loss"], 6),
            tokens_per_s=round(tokens / seconds, 1),
            eta_s=round((occupant.steps - occupant.step) * seconds / max(steps, 1), 1),
        )
        self._reported, self._at = now, (occupant.step, occupant.tokens)
