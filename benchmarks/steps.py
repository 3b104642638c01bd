"""What durability costs: milliseconds of a recorded step beside its own work, against a plain fsynced file."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, faster
from petl_ray.artifact import Report
from petl_ray.orchestration import Home, Placement, start_run
from petl_ray.spec import Spec
from petl_ray.verb import StepContext, Verb


class Count(Spec):
    """One question of the benchmark."""

    number: int


def answer(spec: Count, *, step: StepContext) -> Report:
    """An answer with one small file, as most steps have."""
    (step.out / "report.json").write_text(f'{{"number": {spec.number}}}')
    return Report(
        task="bench", adapter_digest="0" * 64, dataset_digest="0" * 64, metric="accuracy", mode="max", rows=1, scores={},
        files=step.keep("report.json"),
    )  # fmt: skip


count: Verb[Report] = Verb(name="count", version=1, function="benchmarks.steps:answer")


def measure(quick: bool) -> Iterator[Row]:
    """Rows: a durable step in process, and a hit, against one fsynced file."""
    steps = 40 if quick else 200
    with tempfile.TemporaryDirectory() as folder:
        home = Home.at(folder)
        made: list[float] = []
        found: list[float] = []
        file: list[float] = []
        with start_run(home, pipeline="bench", locked={}, placement=Placement(ray="none")) as run:
            for number in range(steps):
                for times in (made, found):
                    began = time.perf_counter()
                    outcome = run.make(count, Count(number=number), label=f"count {number}")
                    times.append(time.perf_counter() - began)
                assert (run.fetch(outcome) / "report.json").read_text() == f'{{"number": {number}}}'
                file.append(_fsynced(Path(folder) / f"plain-{number}"))
    yield faster("a durable step, computed, against one fsynced file", made, file)
    yield faster("a durable step, found again, against one fsynced file", found, file)


def _fsynced(path: Path) -> float:
    began = time.perf_counter()
    with path.open("wb") as stream:
        stream.write(b"{}")
        stream.flush()
        os.fsync(stream.fileno())
    return time.perf_counter() - began
