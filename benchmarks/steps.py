"""What durability costs: milliseconds of a recorded step beside its own work, against a plain fsynced file."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

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


def measure(steps: int = 100) -> list[dict[str, Any]]:
    """Rows: a durable step in process, a hit, and one fsynced file for scale; medians in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home.at(folder)
        made, found, file = [], [], []
        with start_run(home, pipeline="bench", locked={}, placement=Placement(ray="none")) as run:
            for number in range(steps):
                for times in (made, found):
                    began = time.perf_counter()
                    outcome = run.make(count, Count(number=number), label=f"count {number}")
                    times.append(1e3 * (time.perf_counter() - began))
                assert (run.fetch(outcome) / "report.json").read_text() == f'{{"number": {number}}}'
                file.append(_fsynced(Path(folder) / f"plain-{number}"))
    rows = [("durable step, computed", made), ("durable step, found", found), ("one fsynced file", file)]
    return [{"figure": name, "median_ms": _median(times), "p90_ms": _p90(times), "n": steps} for name, times in rows]


def _fsynced(path: Path) -> float:
    began = time.perf_counter()
    with path.open("wb") as stream:
        stream.write(b"{}")
        stream.flush()
        os.fsync(stream.fileno())
    return 1e3 * (time.perf_counter() - began)


def _median(times: list[float]) -> float:
    return round(statistics.median(times), 2)


def _p90(times: list[float]) -> float:
    return round(statistics.quantiles(times, n=10)[-1], 2)
