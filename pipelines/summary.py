"""What a run has come to, task by task: what was chosen, what it is worth beside its yardsticks, what is served."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from petl_ray.artifact import Adapter, Dataset, Endpoint, Interval, Release, Report, Trial
from petl_ray.evaluation.pooling import pooled_over
from petl_ray.evaluation.predictions import PREDICTIONS
from petl_ray.orchestration import Run
from petl_ray.plan import CHAMPION, DEFAULT, HEAD_ONLY, SEED, TUNED, LockedPlan, LockedTask
from petl_ray.spec import with_overrides
from petl_ray.tuning.ranking import RankedTrial, ranked_trials

# What a full copy of the base would weigh: four bytes a parameter, as fp32 checkpoints are shipped.
FULL_MODEL_BYTES_PER_PARAMETER = 4

NOTHING_SERVED = "nothing is served: no candidate was promoted, and no champion stood before"


class SeedScores(BaseModel):
    """What the recipe comes to with several seeds, on held-out rows in the task's metric, by number (the seed is the
    recipe's plus it): `scores`, their mean and sample standard deviation (None of a single one); `asked` is how many
    were to be trained, and `chosen` the one that is put forward."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: dict[int, float]
    mean: float
    spread: float | None
    asked: int
    chosen: int


class TaskSummary(BaseModel):
    """One task's line. Scores are on held-out rows, in `metric`; differences are paired over the same rows.

    `recipe` is what was put forward: method, rank or size, targets, learning rate, and phases where it has any.
    `tuning_gain` is the validation score of the winner minus that of the default recipe, trial 0; `ranking` has every
    trial of the search. Shares are parts of 1. `sample` is a held-out row and `sample_label` its true label, None
    where rows have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    task_type: str
    sample: str
    sample_label: str | None = None
    recipe: dict[str, Any]
    metric: str
    mode: str
    rows: int
    scores: dict[str, Interval]
    differences: dict[str, Interval]
    seeds: SeedScores | None = None
    trials: int | None
    tuning_gain: float | None
    ranking: tuple[RankedTrial, ...] = ()
    trained_share: float
    adapter_bytes: int
    full_model_bytes: int
    adapter_digest: str
    seconds: float
    version: int | None
    status: str
    reasons: tuple[str, ...]


class Summary(BaseModel):
    """All tasks of a run; `failures` says which part failed and why, `exit_code` of which kind they
    all are (1: of several); `note` says so where nothing had to be done, or nothing could be served.

    `pooled` is the gain in accuracy over a rival, by rival, over the held-out rows of all classification tasks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: str
    tasks: tuple[TaskSummary, ...]
    pooled: dict[str, Interval] = {}
    failures: dict[str, str]
    exit_code: int = 0
    endpoint: str | None = None
    note: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether every task came to its end (a refused candidate did)."""
        return not self.failures

    @classmethod
    def unchanged(cls, earlier: Mapping[str, Any], run_id: str, champions: Mapping[str, tuple[int, str]]) -> Summary:
        """The summary of an earlier run, said again because nothing it depends on has changed.

        Names may have been moved since: what is told of them follows from today's `champions` (task -> version, adapter
        digest). What the earlier run served may have ended with it, so there is no endpoint to be asked.
        """
        note = f"nothing to do: data, base and plan are those of run {run_id}"
        summary = cls.model_validate(dict(earlier))
        tasks = tuple(_standing_today(task, champions.get(task.task)) for task in summary.tasks)
        return summary.model_copy(update={"tasks": tasks, "note": note, "endpoint": None})


def _standing_today(task: TaskSummary, champion: tuple[int, str] | None) -> TaskSummary:
    """The task's line with what its name means today in the place of what the gate said in its time."""
    if champion is not None and champion[1] == task.adapter_digest:
        said = f"version {champion[0]} is the champion today."
        return task.model_copy(update={"version": champion[0], "status": "champion", "reasons": (said,)})
    status = "registered" if task.status == "champion" else task.status
    holder = f"version {champion[0]}" if champion else "no version"
    said = f"{holder} is the champion today; what this plan put forward, version {task.version}, is {status}."
    return task.model_copy(update={"status": status, "reasons": (said,)})


def summarize(
    run: Run,
    plan: LockedPlan,
    datasets: Mapping[str, Dataset],
    best: Mapping[str, Trial],
    adapters: Mapping[str, Adapter],
    reports: Mapping[str, Report],
    releases: Mapping[str, Release],
    endpoint: Endpoint | None,
) -> Summary:
    """The summary of what a pipeline has made, in the order of the plan's tasks."""
    candidates = plan.candidates(adapters)
    rows = []
    for key in plan.tasks:
        if key in reports:
            made = [best[key]] if key in best else []
            mine = [adapters[name] for name in adapters if name.startswith(f"{key}/")]
            rows.append(
                _row(key, plan.tasks[key], best.get(key), candidates[key], reports[key], releases.get(key)).model_copy(
                    update={
                        "seeds": _seeds(plan, key, candidates[key], adapters, reports[key]),
                        **_sample(run.fetch(datasets[key]) / "test.jsonl", datasets[key].labels),
                        "ranking": ranked_trials(run.fetch(best[key]), best[key].mode) if key in best else (),
                        "seconds": sum(float(one.about.get("seconds", 0.0)) for one in (*made, *mine)),
                    }
                )
            )
    failures = {key: str(error) for key, error in run.failures.items()}
    url = endpoint.url if endpoint else None
    predictions = {key: run.fetch(report) / PREDICTIONS for key, report in reports.items()}
    pooled = pooled_over(predictions, (HEAD_ONLY, DEFAULT, CHAMPION)) if len(predictions) > 1 else {}
    return Summary(
        plan=plan.name,
        tasks=tuple(rows),
        pooled=pooled,
        failures=failures,
        exit_code=_exit_code(run),
        endpoint=url,
        note=NOTHING_SERVED if plan.serving and not endpoint and not failures else None,
    )


def _exit_code(run: Run) -> int:
    """0, or the code of the errors' kind where all are of one."""
    codes = {error.exit_code for error in run.failures.values()}
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def _seeds(
    plan: LockedPlan, key: str, candidate: Adapter, adapters: Mapping[str, Adapter], report: Report
) -> SeedScores | None:
    """The held-out scores of all seeds that came to an end; None where one seed was asked for."""
    asked = plan.tasks[key].seeds
    if asked == 1:
        return None
    chosen = next(role for role, one in plan.seeds(key, adapters).items() if one.digest == candidate.digest)
    scores = {role: one.value for role, one in report.rivals.items() if role.startswith(SEED)}
    scores[chosen] = report.scores[report.metric].value
    numbered = {int(role.removeprefix(SEED)): score for role, score in scores.items()}
    spread = statistics.stdev(numbered.values()) if len(numbered) > 1 else None
    mean = statistics.fmean(numbered.values())
    number = int(chosen.removeprefix(SEED))
    return SeedScores(scores=dict(sorted(numbered.items())), mean=mean, spread=spread, asked=asked, chosen=number)


def _sample(rows: Path, labels: Sequence[str]) -> dict[str, str | None]:
    """The first held-out row, to ask the endpoint with, and the label it bears."""
    with rows.open(encoding="utf-8") as lines:
        row = json.loads(next(lines))
    if "text" not in row:
        return {"sample": str(row["prompt"]), "sample_label": None}
    return {"sample": str(row["text"]), "sample_label": labels[row["label"]]}


def _row(
    key: str, task: LockedTask, best: Trial | None, adapter: Adapter, report: Report, release: Release | None
) -> TaskSummary:
    recipe = with_overrides(task.training, best.overrides) if best else task.training
    phases = [phase.model_dump(exclude_none=True) for phase in recipe.phases]
    scores = {role: report.rivals[role] for role in ("majority", "base", HEAD_ONLY, DEFAULT) if role in report.rivals}
    return TaskSummary(
        task=key,
        task_type=task.type,
        sample="",
        seconds=0.0,
        recipe={**recipe.method.model_dump(mode="json"), "learning_rate": recipe.learning_rate}
        | ({"lora_plus": recipe.lora_plus} if recipe.lora_plus != 1.0 else {})
        | ({"phases": phases} if phases else {}),
        metric=report.metric,
        mode=report.mode,
        rows=report.rows,
        scores={**scores, (TUNED if best else DEFAULT): report.scores[report.metric]},
        differences=dict(report.differences),
        trials=best.trials if best else None,
        tuning_gain=best.score - best.default_score if best else None,
        trained_share=adapter.trained_parameters / (adapter.base_parameters + adapter.trained_parameters),
        adapter_bytes=adapter.size_bytes,
        full_model_bytes=adapter.base_parameters * FULL_MODEL_BYTES_PER_PARAMETER,
        adapter_digest=adapter.digest,
        version=release.version if release else None,
        status=release.status if release else "failed",
        reasons=release.reasons if release else (),
    )
