"""Sweeps against Ray Tune as it is used without the project: trial-steps a second at equal work, and the core-seconds to
an equally good configuration. Every contestant answers in a process of its own; units are kept as they come.

(a) is one function trial a process with transformers' Trainer and PEFT, in fp32, as their pages show it; (b) actors that
are used again, with a bare PEFT loop in the precision and with the threads that a probe on this machine finds fastest.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.code import sources
from benchmarks.machine import WITHOUT_AMX, has_amx
from benchmarks.questions import GRIDS, PUBLIC, RECIPE, Question, missing, prepared, rows, tasks
from benchmarks.rows import Row, spread
from benchmarks.sweep import measured
from benchmarks.units import Unit, Units
from petl_ray.tuning.layout import MOST_TRIALS

CORES = min(2, os.cpu_count() or 1)
RUNGS, REDUCTION = (0.1, 0.4, 1.0), 4.0  # a geometric ladder, as Tune's ASHA builds it from its grace period
ATTEMPTS = 3  # searches of ours, one after another, until the score is reached
ROUNDS = 3
SLOTS = MOST_TRIALS["cpu"]  # of a pack of ours: as many as `slots: auto` means
RIVALS = {"full": "(a), full budget", "asha": "(a) with ASHA"}


def throughput(quick: bool, again: bool) -> Iterator[Row]:
    """Trial-steps a second of a whole sweep without early stopping: 16 trials at batch 8 over real rows, two cores.

    The clock begins when Ray is up and ends with the last trial: processes, imports, the base and validation count.
    """
    units = Units("search", again)
    task = next(iter(tasks_of_long_rows()))
    recipe = {**RECIPE, "epochs": 1 if quick else RECIPE["epochs"]}
    grid = {**GRIDS[16], "method.rank": [8]} if quick else GRIDS[16]
    asked = Question(task, grid, recipe, cores=CORES)
    best = best_precision()
    probed = _speeds(units, asked)
    mode, threads = max(probed, key=lambda each: probed[each])
    alone = max((each for each in probed if each[0] == "fp32"), key=lambda each: probed[each])[1]
    fastest, plain = f"loop {mode}, threads {threads}", f"loop fp32, threads {alone}"  # may be one and the same
    contestants = {
        f"ours {best}": ("ours", replace(asked, precision=best, slots=SLOTS)),
        "trainer": ("trainer", asked),
        fastest: ("loop", replace(asked, mode=mode, threads=threads)),
        "ours fp32": ("ours", replace(asked, precision="fp32", slots=SLOTS)),
        plain: ("loop", replace(asked, threads=alone)),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for turn in range(1 if quick else ROUNDS):
        for name, (contestant, question) in contestants.items():
            unit = Unit("throughput", task, 0, name, turn, question.digest, sources() if contestant == "ours" else "")
            found[name].append(units.facts(unit, partial(measured, contestant, question)))
    steps = _steps(asked)
    check_equal_work(found, steps, len(asked.configurations))
    speeds = {name: [_all_steps(facts) / facts["sweep_s"] for facts in turns] for name, turns in found.items()}
    shape = f"{len(asked.configurations)} trials of {steps} steps, batch 8, {task}"
    trainer, loop = "(a) Trainer, a process a trial", "(b) bare loop, actors reused"
    amx = has_amx()  # without it the bounds of bf16, which are stated for it, mean nothing
    bounds: list[tuple[float | None, float | None]] = [(3.0, 6.0), (2.5, 5.0)] if amx else [(None, None)] * 2
    wide = ((best, "trainer", trainer, bounds[0]), (best, fastest, f"{loop}, its fastest mode", bounds[1]))
    single = (("fp32", "trainer", trainer, (1.5, 1.8)), ("fp32", plain, f"{loop}, fp32", (1.25, 1.6)))
    for precision, rival, against, (reach, aim) in (*(wide if best != "fp32" else ()), *single):
        bare = precision != "fp32" and not amx
        figure = f"trial-steps/s, {shape}, {precision}{' without AMX' if bare else ''}: against {against}"
        notes = ["" if rival == "trainer" else rival, WITHOUT_AMX if bare else ""]
        note = "; ".join(one for one in notes if one)
        yield _more(figure, "steps/s", speeds[f"ours {precision}"], speeds[rival], reach, aim, note)


def cost(quick: bool, again: bool) -> Iterator[Row]:
    """Core-seconds (wall clock of the whole process times its cores) until a configuration is known that scores as well
    on validation rows, within one standard error, as the best of 64 trained to the end by (a)."""
    units = Units("search", again)
    for name in missing():
        print(f"skipped: core-seconds on {name}: its rows are not here (PETL_RAY_BENCH_DATA)", flush=True)
    found = [
        _costs(units, task, quick) for task in [name for name in tasks() if name in PUBLIC][: 1 if quick else None]
    ]
    count = 16 if quick else 64
    for each in found:
        for rival, what in RIVALS.items():
            yield cheaper(f"{count} configurations, {each.task}: against {what}", "core-s", [each], rival)
    if found and not quick:
        for rival, what in RIVALS.items():
            bounds = {"full": (12.0, 30.0), "asha": (3.0, 6.0)}[rival]
            figure = f"{count} configurations, {len(found)} tasks: against {what}"
            yield cheaper(figure, "core-s", found, rival, *bounds)
            yield cheaper(figure, "CPU-s", found, rival)


@dataclass(frozen=True)
class Costs:
    """What the contestants spent on one task, by name: core-seconds and processor seconds; whether ours got there, and
    whether nobody but the recipe itself, which no scheduler of ours stops, came to the score."""

    task: str
    reached: bool
    core_s: dict[str, float]
    cpu_s: dict[str, float]
    by_recipe: bool = False


def _costs(units: Units, task: str, quick: bool) -> Costs:
    """Ours searches again, with another seed, until it is as good."""
    full = Question(task, GRIDS[16 if quick else 64], {**RECIPE, "epochs": 1 if quick else 4}, cores=CORES)
    stopped = replace(full, rungs=RUNGS, reduction=REDUCTION)
    core_s, cpu_s = {"ours": 0.0}, {"ours": 0.0}
    wanted, reached, by_recipe = 0.0, 0.0, False
    for name, question in (("full", full), ("asha", stopped)):
        unit = Unit("cost", task, 0, f"trainer {name}", 0, question.digest)
        facts = units.facts(unit, partial(measured, "trainer", question))
        core_s[name], cpu_s[name] = facts["core_s"], facts["cpu_s"]
        wanted = wanted or best_score(facts)
    error = math.sqrt(wanted * (1 - wanted) / len(rows(prepared(task), "validation")))
    for attempt in range(ATTEMPTS):
        question = replace(stopped, precision=best_precision(), slots=SLOTS, seed=attempt)
        unit = Unit("cost", task, attempt, "ours", 0, question.digest, sources())
        facts = units.facts(unit, partial(measured, "ours", question))
        core_s["ours"], cpu_s["ours"] = core_s["ours"] + facts["core_s"], cpu_s["ours"] + facts["cpu_s"]
        reached = max(reached, best_score(facts))
        by_recipe = best_score(facts, tuned=True) < wanted - error
        if reached >= wanted - error:
            break
    return Costs(task, reached >= wanted - error, core_s, cpu_s, by_recipe)


def cheaper(
    name: str, unit: str, found: list[Costs], rival: str, reach: float | None = None, aim: float | None = None
) -> Row:
    """A row of costs: less is better. What was not reached has no cost, and so a ratio of 0. The spread is that of the
    tasks' ratios."""
    spent = [each.core_s if unit == "core-s" else each.cpu_s for each in found]
    ours, theirs = sum(each["ours"] for each in spent), sum(each[rival] for each in spent)
    missed = ", ".join(each.task for each in found if not each.reached)
    alone = ", ".join(each.task for each in found if each.reached and each.by_recipe)
    notes = [f"not reached: {missed}" if missed else "", f"reached by the recipe alone: {alone}" if alone else ""]
    words = "core-seconds" if unit == "core-s" else "CPU seconds of all processes"
    return Row(
        f"{words} to the same best validation score, {name}",
        unit,
        round(ours, 1),
        round(theirs, 1),
        0.0 if missed else round(theirs / ours, 2),
        spread([each[rival] / each["ours"] for each in spent]),
        len(found),
        reach,
        aim,
        held=not missed,
        note="; ".join(one for one in notes if one),
    )


def best_score(facts: Mapping[str, Any], *, tuned: bool = False) -> float:
    """The best validation score among the trials that were trained to the end; with `tuned` without trial 0, the recipe
    as it stands (0 where no other was)."""
    ended = [one for one in facts["trials"] if one["share"] >= 1.0 and not (tuned and one["number"] == 0)]
    return max((float(one["score"]) for one in ended), default=0.0)


def best_precision() -> str:
    """What `precision: auto` means on this machine."""
    from petl_ray.models import choose_precision

    return choose_precision()


def tasks_of_long_rows() -> list[str]:
    """Tasks by preference for timing: sentences of some twenty words first."""
    return [name for name in ("sst2", "review_sentiment") if name in tasks()]


def check_equal_work(found: Mapping[str, list[dict[str, Any]]], steps: int, trials: int) -> None:
    """Everybody trained every configuration to the end, and the same configurations came to scores that agree: upper
    quartiles and means are within 4 points of (a)'s, two standard errors of a score on 300 rows. (Close to half of the
    grid's configurations break, one or two of them under one shuffle and not under another: a median may fall on either
    side of the gap.)"""
    told: dict[str, tuple[float, float]] = {}
    for name, turns in found.items():
        for facts in turns:
            assert len(facts["trials"]) == trials, f"{name}: {len(facts['trials'])} trials of {trials}"
            taken = {trial["steps"] for trial in facts["trials"] if trial.get("state") != "diverged"}
            assert taken == {steps}, f"{name}: took {taken} steps, not {steps}"
        scores = [trial["score"] for facts in turns for trial in facts["trials"]]
        told[name] = float(np.quantile(scores, 0.75)), statistics.fmean(scores)
    apart = {
        name: [round(mine - theirs, 4) for mine, theirs in zip(figures, told["trainer"], strict=True)]
        for name, figures in told.items()
    }
    assert all(abs(gap) < 0.04 for gaps in apart.values() for gap in gaps), f"scores do not agree with (a)'s: {apart}"


def _speeds(units: Units, asked: Question) -> dict[tuple[str, int], float]:
    """Steps a second of the bare loop on all cores together, by precision and threads of a process."""
    from benchmarks.rivals.loop import MODES

    speeds: dict[tuple[str, int], float] = {}
    for mode in MODES:
        question = replace(asked, mode=mode, recipe=RECIPE)
        unit = Unit("probe", asked.task, 0, f"loop {mode}", 0, question.digest)
        facts = units.facts(unit, partial(measured, "probe", question))
        for threads, step_s in facts["step_s"].items():
            speeds[mode, int(threads)] = CORES / int(threads) / step_s
    return speeds


def _steps(question: Question) -> int:
    count, size = len(rows(prepared(question.task), "train")), int(question.recipe["batch_size"])
    return int(question.recipe["epochs"]) * -(-count // size)


def _all_steps(facts: Mapping[str, Any]) -> int:
    return sum(int(trial["steps"]) for trial in facts["trials"])


def _more(
    figure: str,
    unit: str,
    ours: list[float],
    theirs: list[float],
    reach: float | None,
    aim: float | None,
    note: str = "",
) -> Row:
    """A row of rates: more is better."""
    mine, other = statistics.median(ours), statistics.median(theirs)
    ratio = round(mine / other, 2)
    return Row(figure, unit, round(mine, 1), round(other, 1), ratio, spread(ours), len(ours), reach, aim, note=note)
