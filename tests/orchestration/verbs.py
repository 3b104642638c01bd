"""Small real verbs for tests of the run: they write files, keep progress, record facts, and count how often they ran.

Every execution appends a line to `spec.tally`, so that a test can see across processes what was really computed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from petl_ray.artifact import Artifact, Dataset
from petl_ray.errors import DataError, PetlRayError, TemporaryError
from petl_ray.spec import NOT_IDENTITY, Spec
from petl_ray.verb import Question, StepContext, Verb


class CountSpec(Spec):
    """`number` is the answer; the rest says how the work behaves on its way there."""

    number: int
    tally: Annotated[str, NOT_IDENTITY] = ""
    seconds: Annotated[float, NOT_IDENTITY] = 0.0
    fail: str = ""
    busy_times: Annotated[int, NOT_IDENTITY] = 0
    rounds: int = 0
    meets: Annotated[int, NOT_IDENTITY] = 0  # so many packs of different sizes wait for each other


def lines(path: Path | str) -> list[str]:
    """What was tallied so far."""
    return Path(path).read_text().split() if Path(path).exists() else []


def tally(spec: CountSpec, word: str) -> None:
    if spec.tally:
        with Path(spec.tally).open("a") as stream:
            stream.write(word + "\n")


def _answer(spec: CountSpec, inputs: Sequence[Artifact], step: StepContext) -> Dataset:
    total = spec.number + sum(sum(one.rows.values()) for one in inputs if isinstance(one, Dataset))
    (step.out / "train.jsonl").write_text(json.dumps({"total": total}) + "\n")
    (step.out / "trace.txt").write_text(f"pid {os.getpid()}\n")
    return Dataset(
        task="count",
        task_type="classification",
        rows={"train": total},
        files=step.keep("train.jsonl"),
        traces=step.keep("trace.txt"),
        about={"pid": os.getpid()},
    )


def count_function(spec: CountSpec, *inputs: Artifact, step: StepContext) -> Dataset:
    tally(spec, f"count-{spec.number}")
    until = time.monotonic() + spec.seconds
    while time.monotonic() < until:
        step.check()
        time.sleep(0.02)
    if spec.busy_times and len(lines(spec.tally)) <= spec.busy_times:
        raise TemporaryError("the world", "busy", delay_s=0.05)
    if spec.fail == "permanent":
        error = DataError("row 17", "label: missing", "a row without a label teaches nothing", "Add one")
        error.add_note("as it was read in batch 3")
        raise error
    if spec.fail == "surprise":
        raise KeyError("surprise")
    if spec.fail == "unkept":
        kept = _answer(spec, inputs, step)
        return kept.model_copy(update={"files": (kept.files[0].model_copy(update={"sha256": "0" * 64}),)})
    return _answer(spec, inputs, step)


def _await_packs(spec: CountSpec, *, patience_s: float = 60.0) -> None:
    """Packs in a hurry would follow each other in one process, and nobody could tell them from one pack."""
    until = time.monotonic() + patience_s
    while spec.meets > len({word for word in lines(spec.tally or os.devnull) if word.startswith("pack")}):
        if time.monotonic() > until:
            raise TemporaryError("the other packs", "did not begin", delay_s=0.0)
        time.sleep(0.02)


def count_all(
    questions: Sequence[Question], steps: Sequence[StepContext]
) -> Iterator[tuple[int, Artifact | PetlRayError]]:
    for index, (question, step) in enumerate(zip(questions, steps, strict=True)):
        spec = question.spec
        assert isinstance(spec, CountSpec)
        tally(spec, f"pack-of-{len(questions)}")
        _await_packs(spec)
        try:
            yield index, count_function(spec, *question.inputs, step=step)
        except PetlRayError as error:
            yield index, error


def climb_function(spec: CountSpec, *inputs: Artifact, step: StepContext) -> Dataset:
    """`rounds` rounds, each recorded once and checkpointed: what a training or a search does."""
    done = step.recorded()
    found = step.load_progress()
    height = 0 if found is None else int((found.directory / "height.txt").read_text())
    for number in range(spec.rounds):
        step.check()
        if f"round/{number}" in done:
            continue
        height += number + 1 if height < sum(range(number + 2)) else 0
        saved = step.out / "progress"
        saved.mkdir(exist_ok=True)
        (saved / "height.txt").write_text(str(height))
        step.save_progress(saved, {"round": number})
        tally(spec, f"round-{number}")
        step.record(f"round/{number}", {"height": height})
        if spec.seconds:
            time.sleep(spec.seconds)
    heights = [value["height"] for _, value in sorted(step.recorded().items(), key=lambda one: int(one[0][6:]))]
    (step.out / "heights.json").write_text(json.dumps(heights))
    return Dataset(task="climb", task_type="classification", rows={"top": heights[-1]}, files=step.keep("heights.json"))


def greet_function(spec: CountSpec, *inputs: Artifact, step: StepContext) -> Dataset:
    """An effect: the tally is the world."""
    tally(spec, f"greet-{spec.number}")
    return Dataset(task="greet", task_type="classification", rows={"n": spec.number}, about=dict(step.services))


def crash_function(spec: CountSpec, *inputs: Artifact, step: StepContext) -> Dataset:
    """The first `busy_times` processes that try die in the middle of it."""
    tally(spec, "crash")
    if len(lines(spec.tally)) <= spec.busy_times:
        os.kill(os.getpid(), 9)
    return _answer(spec, inputs, step)


def chatter_function(spec: CountSpec, *inputs: Artifact, step: StepContext) -> Dataset:
    """Prints what a library would print, in Python and below it."""
    print("chatter from python", flush=True)
    os.write(2, b"chatter from below\n")
    step.report("chat.word", word="hello", number=spec.number)
    return _answer(spec, inputs, step)


def copy_function(spec: CountSpec, *inputs: Artifact, step: StepContext) -> Dataset:
    """Reads the file of what it is handed."""
    tally(spec, f"copy-{spec.number}")
    (step.out / "copy.jsonl").write_bytes((step.fetch(inputs[0]) / "train.jsonl").read_bytes())
    return Dataset(task="copy", task_type="classification", rows={"n": spec.number}, files=step.keep("copy.jsonl"))


def _verb(name: str, **more: Any) -> Verb:
    return Verb(name=name, version=1, function=f"{__name__}:{name}_function", **more)


count = _verb("count", packed=f"{__name__}:count_all")
climb = _verb("climb")
greet = _verb("greet")
crash = _verb("crash")
chatter = _verb("chatter")
copy = _verb("copy")


def nest_function(spec: CountSpec, *inputs: Artifact, step: StepContext) -> Dataset:
    """Drives other Ray work that needs every core there is."""
    import ray

    inner = ray.remote(num_cpus=2)(lambda: tally(spec, "nested"))
    ray.get(inner.remote(), timeout=60)
    return _answer(spec, inputs, step)


nest = _verb("nest", drives_ray=True)
