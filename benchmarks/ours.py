"""The sweep as the project's users have it: a durable run that prepares, searches in packs, trains and evaluates."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.questions import BASE, Question, source
from petl_ray.artifact import Adapter, Dataset
from petl_ray.data import prepare
from petl_ray.evaluation import EvalSpec, evaluate
from petl_ray.models import BaseSpec, resolve
from petl_ray.orchestration import Home, Placement, Run, start_run
from petl_ray.spec import with_overrides
from petl_ray.training import TrainSpec, train
from petl_ray.tuning import SearchSpec, search
from petl_ray.tuning.ranking import TABLE, TIMES


def sweep(question: Question) -> dict[str, Any]:
    """Search the question's grid: seconds of the search, what became of every trial, the winner's score on test rows."""
    recipe = recipe_of(question)
    spec = SearchSpec.model_validate(
        {
            "recipe": recipe,
            "space": question.space,
            "trials": len(question.configurations),
            "algorithm": "grid" if question.first is None else "random",
            "scheduler": "none" if len(question.rungs) == 1 else "asha",
            "reduction": question.reduction,
            "rungs": question.rungs,
            "generation": len(question.configurations),
            "engine": "packed",
            "seed": question.seed,
        }
    )
    with tempfile.TemporaryDirectory() as home, _run(home, question) as run:
        dataset = run.make(prepare, source(question.task))  # Ray is up when it is known
        began = time.perf_counter()
        best = run.make(search.using(train=train), spec, dataset)
        sweep_s = time.perf_counter() - began
        facts = {"sweep_s": round(sweep_s, 3), "trials": trials_in(run.fetch(best))}
        if question.tested:
            adapter = run.make(train, with_overrides(recipe, best.overrides), dataset)
            facts["test"] = _test_score(run, adapter, dataset)
        return facts


def tuned(question: Question, budget: dict[str, Any]) -> dict[str, Any]:
    """A search as a plan asks for it (`budget` are fields of a SearchSpec): the winner and the default recipe, both
    trained with the question's seed and tested on the same rows."""
    recipe = recipe_of(question)
    spec = SearchSpec.model_validate({"recipe": recipe, "space": question.space, "seed": question.seed, **budget})
    with tempfile.TemporaryDirectory() as home, _run(home, question) as run:
        dataset = run.make(prepare, source(question.task))
        began = time.perf_counter()
        best = run.make(search.using(train=train), spec, dataset)
        sweep_s = time.perf_counter() - began
        winner = run.make(train, with_overrides(recipe, best.overrides), dataset)
        default = run.make(train, recipe, dataset, label="train the default recipe")
        return {
            "sweep_s": round(sweep_s, 3),
            "overrides": best.overrides,
            "validation": best.score,
            "default_validation": best.default_score,
            "test": _test_score(run, winner, dataset),
            "default_test": _test_score(run, default, dataset),
        }


def recipe_of(question: Question) -> TrainSpec:
    """The question's recipe over the base."""
    base = resolve(BaseSpec.model_validate({"source": BASE, "precision": question.precision}))
    return TrainSpec.model_validate({**question.recipe, "base": base, "seed": question.seed})


def _run(home: str, question: Question) -> Any:
    packs = {"cpus": 1, "packs": question.cores, "slots": question.slots}
    where = Placement.model_validate({"cpus": question.cores, "verbs": {"search": packs, "train": packs}})
    return start_run(Home.at(home), pipeline="bench", locked={"question": question.digest}, placement=where)


def trials_in(folder: Path) -> list[dict[str, Any]]:
    """Every trial of a search whose files lie in `folder`, with the score and the share of the horizon where it stood
    last. `steps` are those that its slot counted, 0 where no rung was reached: no formula takes part in them."""
    counted: dict[int, int] = {}
    for timing in _lines(folder / TIMES):
        counted[timing["number"]] = max(counted.get(timing["number"], 0), int(timing.get("steps", 0)))
    found = []
    for row in _lines(folder / TABLE):
        shares = {float(share): float(score) for share, score in row["scores"].items()}
        last = max(shares, default=0.0)
        known = {"number": row["number"], "overrides": row["overrides"], "state": row["state"]}
        found.append({**known, "score": shares.get(last, 0.0), "share": last, "steps": counted.get(row["number"], 0)})
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _test_score(run: Run, adapter: Adapter, dataset: Dataset) -> float:
    report = run.make(evaluate, EvalSpec(resamples=200), adapter, dataset)
    return report.scores["accuracy"].value
