"""What the packed search finds: its winner against the winner of (a) on held-out rows, and tuned against default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.code import sources
from benchmarks.questions import GRIDS, PUBLIC, RECIPE, Question, missing, tasks
from benchmarks.rows import Row, paired
from benchmarks.search import CORES, REDUCTION, RUNGS, SLOTS, best_precision
from benchmarks.sweep import measured
from benchmarks.units import Unit, Units
from petl_ray.fingerprint import sha256_of

SEEDS = (0, 1, 2)
HALF_AT = 0.4  # of the horizon: 64 configurations take the steps of 45 then, in packs (a)'s core-seconds for 16
NOT_WORSE, BETTER = -1.0, 0.0  # points that the lower end of the paired interval must not be below
PLAIN: dict[str, Any] = {  # the recipe, the space and the search of the quickstart plan
    "method": {"kind": "lora", "rank": 8, "alpha": 16, "targets": "query_value"},
    "learning_rate": 1e-3,
    "epochs": 5,
    "batch_size": 16,
    "max_length": 64,
    "metric": "accuracy",
}
SPACE: dict[str, Any] = {
    "learning_rate": {"loguniform": [5e-4, 8e-3]},
    "method.rank": [2, 4, 8],
    "method.targets": ["query_value", "attention", "mlp", "all-linear"],
}
BUDGET: dict[str, Any] = {
    "trials": 24,
    "generation": 12,
    "algorithm": "optuna",
    "startup_trials": 8,
    "scheduler": "asha",
    "reduction": 3,
    "rungs": [0.2, 0.5, 1.0],
    "limits": {"trained_share": 0.02},
}


def winners(quick: bool, again: bool) -> Iterator[Row]:
    """Test scores of the winners, paired over tasks and seeds: with (a)'s very 16 configurations, all trained to the end,
    with 64 of which half are stopped, and with 64 of which the worst are stopped early. None may take more core-seconds
    than (a)'s 16."""
    units = Units("quality", again)
    here = [name for name in tasks() if name in PUBLIC][: 1 if quick else None]
    for name in missing():
        print(f"skipped: quality on {name}: its rows are not here (PETL_RAY_BENCH_DATA)", flush=True)
    scores: dict[str, list[float]] = {"trainer": [], "equal": [], "whole": [], "wide": []}
    pairs: list[str] = []
    spent: dict[str, float] = dict.fromkeys(scores, 0.0)
    for task in here:
        for seed in SEEDS[: 1 if quick else None]:
            asked = Question(task, GRIDS[16], {**RECIPE, "epochs": 1 if quick else 4}, seed, cores=CORES, tested=True)
            ours = replace(asked, precision=best_precision(), slots=SLOTS)
            pairs.append(task)
            wide = replace(ours, space=GRIDS[64], rungs=RUNGS, reduction=REDUCTION)
            whole = replace(ours, space=GRIDS[64], rungs=(HALF_AT, 1.0), reduction=2.0)
            for name, who, question in (
                ("equal", "ours", ours),
                ("trainer", "trainer", asked),
                ("whole", "ours", whole),
                ("wide", "ours", wide),
            ):
                unit = Unit("winners", task, seed, name, 0, question.digest, sources() if who == "ours" else "")
                facts = units.facts(unit, partial(measured, who, question))
                scores[name].append(float(facts["test"]))
                spent[name] += CORES * float(facts["sweep_s"])
    if here:
        yield from compared(scores, spent, pairs)


def compared(scores: Mapping[str, Sequence[float]], spent: Mapping[str, float], tasks: Sequence[str]) -> Iterator[Row]:
    """The rows of the winners' test scores (0…1, all but `trainer` are ours, `tasks` names whose each is) and of what
    their searches spent.

    A budget may be a number of steps or of core-seconds: both searches that are given (a)'s have bounds. The wide one, which
    takes a fraction, informs, unless it has spent more than (a).
    """
    shape = f"{len(set(tasks))} tasks x {len(tasks) // len(set(tasks))} seeds"
    for name, what, bounds in (
        ("equal", "the same 16 configurations", (NOT_WORSE, BETTER)),
        ("whole", "64 configurations, half of them stopped, in no more core-seconds", (NOT_WORSE, BETTER)),
        ("wide", "64 configurations in no more core-seconds", (None, None)),
    ):
        share = spent[name] / spent["trainer"]
        figure = f"test score of the winner, {what}, against (a)'s winner of 16, {shape}"
        note = f"in {share:.0%} of (a)'s core-seconds{'' if share <= 1 else ': over the budget'}"
        yield paired(figure, scores[name], scores["trainer"], *bounds, tasks=tasks, held=share <= 1, note=note)


def tuning(quick: bool, again: bool) -> Iterator[Row]:
    """Test scores of the tuned and of the default recipe, trained with the same seeds, over all tasks that are here."""
    units = Units("quality", again, timed=False)
    here = tasks()[-1:] if quick else tasks()
    tuned, default, pairs = [], [], []
    for task in here:
        for seed in SEEDS[: 1 if quick else None]:
            question = Question(task, SPACE, PLAIN, seed, best_precision(), cores=CORES)
            unit = Unit("tuning", task, seed, "tuned", 0, sha256_of([question.digest, BUDGET])[:16], sources())
            facts = units.facts(unit, partial(measured, "tuned", question, BUDGET))
            tuned.append(float(facts["test"]))
            default.append(float(facts["default_test"]))
            pairs.append(task)
    seeds = len(SEEDS[: 1 if quick else None])
    figure = f"test score, tuned against the default recipe, {len(here)} tasks, {seeds} seeds"
    yield paired(figure, tuned, default, aim=BETTER, tasks=pairs)
