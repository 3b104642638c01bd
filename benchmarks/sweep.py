"""One contestant at one question in a process of its own, watched from outside: seconds, core-seconds, memory, scores.

`python -m benchmarks.sweep CONTESTANT` reads a question from its standard input and prints what it found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.questions import ROOT, Question, clean, prepared
from benchmarks.tree import Watch

MARK = "benchmark facts: "
QUIET = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONPATH": str(ROOT),
}


def measured(
    contestant: str, question: Question, extra: Mapping[str, Any] | None = None, *, memory: bool = False
) -> dict[str, Any]:
    """What `contestant` came to: its own facts, and from outside `wall_s`, `core_s`, `cpu_s` and, if asked, `pss_mb`.

    `wall_s` is the whole life of the process, imports and the start of Ray included; `core_s` is that times the cores
    that were reserved; `cpu_s` what the whole process tree spent on them. `pss_mb` is the level that the tree's memory
    stays under for three quarters of that time. Raises RuntimeError where the contestant fails.
    """
    asked = json.dumps({"question": question.json(), "extra": dict(extra or {})})
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sweep", contestant],
            stdin=subprocess.PIPE, stdout=out, stderr=err, text=True, cwd=ROOT, env={**os.environ, **QUIET},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(asked)
        process.stdin.close()
        with Watch(process.pid, memory=memory, every_s=0.5 if memory else 0.25) as watch:
            process.wait()
            wall_s = time.perf_counter() - began
        watch.end()
        out.seek(0)
        err.seek(0)
        lines = [line for line in out.read().splitlines() if line.startswith(MARK)]
        if process.returncode or not lines:
            raise RuntimeError(f"{contestant} failed at {question}:\n{err.read()[-4000:]}")
    facts = json.loads(lines[-1].removeprefix(MARK))
    outside = {"wall_s": wall_s, "core_s": wall_s * question.cores, "cpu_s": watch.cpu_s}
    if memory:
        outside |= {"pss_mb": sorted(watch.pss_mb)[len(watch.pss_mb) * 3 // 4], "peak_pss_mb": max(watch.pss_mb)}
    return {**facts, **{name: round(value, 2) for name, value in outside.items()}}


def _ours(question: Question, extra: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.ours import sweep

    return sweep(question)


def _tuned(question: Question, extra: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.ours import tuned

    return tuned(question, extra)


def _trainer(question: Question, extra: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.rivals import on_ray
    from benchmarks.rivals.trainer import train

    facts = _under_ray(question, on_ray.sweep_trainer)
    if question.tested:
        winner = max(facts["trials"], key=lambda trial: (trial["score"], -trial["number"]))
        overrides = question.configurations[winner["number"]]
        facts["test"] = train(question, overrides, prepared(question.task), lambda told: None)["test"]
    return facts


def _loop(question: Question, extra: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.rivals import on_ray

    return _under_ray(question, on_ray.sweep_loop)


def _probe(question: Question, extra: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step of the bare loop on one thread and on all of them."""
    from benchmarks.rivals.loop import Loop
    from petl_ray.models import use_threads

    loop, found = Loop(question, prepared(question.task)), {}
    for threads in sorted({1, question.cores}):
        use_threads(threads)
        found[str(threads)] = loop.step_s()
    return {"step_s": found}


def _under_ray(question: Question, sweep: Callable[..., list[dict[str, Any]]]) -> dict[str, Any]:
    from benchmarks.rivals import on_ray

    folder = prepared(question.task)
    on_ray.start(question.cores)
    began = time.perf_counter()
    trials = sweep(question, folder)
    sweep_s = time.perf_counter() - began
    on_ray.stop()
    return {"sweep_s": round(sweep_s, 3), "trials": trials}


CONTESTANTS: dict[str, Callable[[Question, dict[str, Any]], dict[str, Any]]] = {
    "ours": _ours,
    "tuned": _tuned,
    "trainer": _trainer,
    "loop": _loop,
    "probe": _probe,
}


def main() -> None:
    """Answer the question on the standard input as the contestant that is named."""
    asked = json.loads(sys.stdin.read())
    try:
        facts = CONTESTANTS[sys.argv[1]](Question.of(asked["question"]), asked["extra"])
    finally:
        clean()
    print(MARK + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
