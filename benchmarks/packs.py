"""What packing saves beside time: memory a trial, in one process and over all that a sweep starts, and how long a slot
stands idle between two occupants."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.code import sources
from benchmarks.questions import GRIDS, RECIPE, Question
from benchmarks.rows import Row, spread
from benchmarks.search import CORES, SLOTS, best_precision, tasks_of_long_rows
from benchmarks.sweep import measured
from benchmarks.trials import check_session, driven, order, recipe, seeded
from benchmarks.units import Unit, Units
from petl_ray.training.session import Session
from petl_ray.tuning.layout import MOST_TRIALS

Bounds = tuple[float | None, float | None]  # reach and aim

IDLE_LIMIT_MS = 50.0
UNBOUND: Bounds = (None, None)
PROCESS: Bounds = (5.0, 15.0)
TREE: Bounds = (2.5, 3.5)
MANY = 16  # slots of a pack where memory is what counts; of (a) no more processes have room beside each other


def measure(quick: bool, again: bool) -> Iterator[Row]:
    """Rows: peak memory of a pack's process a trial against a process a trial, both in one precision; the same over the
    process trees of two sweeps, unless it must be quick; the idle time of a slot against its limit.

    Checked first: a session takes the steps that PEFT takes, in every precision. Every process and every sweep is then
    held to the steps that were asked for: all trials, all of them.
    """
    best = best_precision()
    for precision in dict.fromkeys(("fp32", best)):
        check_session(precision)
    yield from _processes(best)
    if not quick:
        yield from _trees(Units("packs", again))
    yield _idle(12 if quick else 40)


def _processes(best: str) -> Iterator[Row]:
    alone = {precision: _peak_mb(f"train_alone({precision!r})") for precision in dict.fromkeys(("fp32", best))}
    asked: tuple[tuple[int, str, Bounds], ...] = ((SLOTS, best, UNBOUND), (8, "fp32", PROCESS), (32, best, PROCESS))
    for slots, precision, bounds in asked:
        each = _peak_mb(f"train_together({slots}, {precision!r})") / slots
        figure = f"memory a trial: a pack of {slots} against a PEFT process, both {precision} (peak resident)"
        yield _less(
            figure, each, alone[precision], bounds, f"trains, validates and saves, without Ray; {_slots(slots)}"
        )


def _slots(count: int) -> str:
    """Where a pack has so many slots."""
    if count == SLOTS:
        return f"{SLOTS} is what `slots: auto` gives a search on a CPU"
    most = f"no more than {SLOTS} on a CPU and {MOST_TRIALS['cuda']} on a GPU"
    return f"{count} is a number that was asked for: `slots: auto` gives a search {most}"


def _trees(units: Units) -> Iterator[Row]:
    """Proportional memory of everything that a sweep started, Ray included, over the trials that are under way side by
    side: in ours a pack a core, with as many slots as `slots: auto` means, and with more that were asked for.

    The bounds hold against (a) with more trials under way than it is given cores, each in its process (Ray is told of a
    core for each). With a trial a core, as (a) is placed by default, it divides what Ray takes by fewer. Of (a) as many
    are compared as fit beside each other on a machine of 24 GiB.
    """
    asked = Question(tasks_of_long_rows()[0], GRIDS[16], {**RECIPE, "epochs": 1}, cores=CORES, slots=SLOTS)
    many = replace(asked, space=GRIDS[64], slots=MANY)
    compared: tuple[tuple[Question, Question, Bounds], ...] = (
        (asked, replace(asked, cores=CORES * SLOTS), TREE),
        (asked, replace(asked, first=2 * CORES), UNBOUND),
        (many, replace(asked, cores=MANY), TREE),
    )
    for ours_asked, theirs_asked, bounds in compared:
        ours, theirs = _swept(units, "ours", ours_asked), _swept(units, "trainer", theirs_asked)
        assert _steps(theirs) == _steps(ours), f"trials took {_steps(theirs)} and {_steps(ours)} steps"
        slots, against = ours_asked.slots, theirs_asked.cores
        together = CORES * slots
        what = f"{together} trials under way in {CORES} packs of {slots}, against (a) with {against} under way"
        note = f"ours {best_precision()}, (a) fp32, each as it is by default; all on {CORES} cores; {_slots(slots)}"
        figure = f"memory a trial: all processes of a sweep (PSS), {what}"
        yield _less(figure, ours["pss_mb"] / together, theirs["pss_mb"] / against, bounds, note)


def _swept(units: Units, who: str, question: Question) -> dict[str, Any]:
    unit = Unit("tree", question.task, 0, who, 0, question.digest, sources() if who == "ours" else "")
    facts = units.facts(unit, partial(measured, who, question, memory=True))
    assert len(facts["trials"]) == len(question.configurations), f"{who}: {len(facts['trials'])} trials"
    return facts


def _steps(facts: dict[str, Any]) -> set[float]:
    return {float(trial["steps"]) for trial in facts["trials"] if trial.get("state") != "diverged"}


def _less(figure: str, ours: float, theirs: float, bounds: Bounds, note: str) -> Row:
    """A row of megabytes, each measured once."""
    ratio = round(theirs / ours, 2)
    return Row(figure, "MB", round(ours, 1), round(theirs, 1), ratio, spread([ours]), 1, *bounds, note=note)


def _peak_mb(call: str) -> float:
    """Peak resident memory of a fresh process that trains some steps at 8 x 32, in MB."""
    script = f"import benchmarks.resident; benchmarks.resident.{call}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{call} failed:\n{done.stderr[-4000:]}")
    return float(done.stdout.split()[-1])


def _idle(trials: int) -> Row:
    gaps = _gaps(trials)
    middle = sorted(gaps)[len(gaps) // 2]
    where = "in one process, the next order at its door, without Tune"
    figure = f"idle time of a slot between two occupants, against 50 ms: {where}"
    ratio = round(IDLE_LIMIT_MS / max(middle, 1e-3), 1)
    return Row(figure, "ms", round(middle, 2), IDLE_LIMIT_MS, ratio, spread(gaps), len(gaps), 1.0, 5.0)


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

    orders = [order(number, spec, 0, 0.5) for number, spec in enumerate(seeded(recipe(epochs=4), trials))]
    Session.turn = noted  # type: ignore[assignment,method-assign]
    try:
        with driven(1) as answers:
            told = answers(orders)
    finally:
        Session.turn = turn  # type: ignore[method-assign]
    assert all("score" in facts for facts in told), f"a trial came to nothing: {told}"
    pairs = itertools.pairwise(turns)
    return [1e3 * (after[0] - before[1]) for before, after in pairs if before[2]]
