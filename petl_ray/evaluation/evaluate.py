"""evaluate: the candidate and its rivals answer the same held-out rows; figures with intervals, paired differences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petl_ray.artifact import Adapter, Dataset, Interval, Report
from petl_ray.errors import AdapterError, DataError, PlanError
from petl_ray.evaluation.answering import BASE, Rows, System, answer_rows
from petl_ray.evaluation.predictions import PREDICTIONS, write_predictions
from petl_ray.evaluation.spec import EvalSpec
from petl_ray.evaluation.statistics import Sampled, sample
from petl_ray.evaluation.tables import confused_pairs, per_label
from petl_ray.tasks import Outcomes, RowScore, task_of
from petl_ray.verb import StepContext

CANDIDATE = "candidate"
MAJORITY = "majority"
REPORT = "report.json"


def evaluate(spec: EvalSpec, adapter: Adapter, dataset: Dataset, *rivals: Adapter, step: StepContext) -> Report:
    """What the rows of `spec.split` say of `adapter` and of its `rivals`, named by `spec.roles` in their order.

    Scores are over rows (language models' loss over scored tokens), intervals and differences over resampled rows.
    Raises PlanError for a metric that the task type does not have or roles that do not fit the rivals, DataError
    without rows, AdapterError for an adapter of another task type, BaseModelError for a base that is absent or changed.
    """
    _fits(spec, adapter, dataset, rivals)
    directory = step.fetch(dataset)
    rows = _rows(directory / f"{spec.split}.jsonl", dataset, spec)
    systems = [System(CANDIDATE, adapter, adapter)]
    systems += [System(role, rival, rival) for role, rival in zip(spec.roles, rivals, strict=True)]
    if dataset.task_type == "causal_lm":
        systems.append(System(BASE, None, adapter))
    answers = answer_rows(systems, rows, dataset, spec.batch_tokens, step)
    if dataset.task_type == "classification":
        answers[MAJORITY] = _majority(_rows(directory / "train.jsonl", dataset, spec), rows, dataset)
    return _report(spec, adapter, dataset, dict(zip(spec.roles, rivals, strict=True)), answers, step)


def _fits(spec: EvalSpec, adapter: Adapter, dataset: Dataset, rivals: Sequence[Adapter]) -> None:
    if len(spec.roles) != len(rivals):
        raise PlanError(
            "evaluation.roles",
            f"got {len(spec.roles)} names for {len(rivals)} rivals",
            "every rival needs one",
            "Name the rivals in the order they are handed in",
        )
    known = task_of(dataset.task_type).metrics
    if spec.metric not in known:
        raise PlanError(
            "evaluation.metric",
            f"got {spec.metric!r}",
            f"a {dataset.task_type} task has no such figure",
            f"Choose {' or '.join(known)}",
        )
    for role, each in zip((CANDIDATE, *spec.roles), (adapter, *rivals), strict=True):
        if each.task_type != dataset.task_type:
            raise AdapterError(
                f"evaluation.{role}",
                f"a {each.task_type} adapter",
                f"{dataset.task} is a {dataset.task_type} task",
                "Compare adapters of one task",
            )


def _rows(path: Path, dataset: Dataset, spec: EvalSpec) -> Rows:
    with path.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    if not rows:
        raise DataError(
            f"{dataset.task}.{path.stem}",
            "got no rows",
            "nothing can be measured on them",
            "Give the split a share of the rows, or evaluate another split",
        )
    return rows


def _majority(train: Rows, rows: Rows, dataset: Dataset) -> list[RowScore]:
    """The rival that knows only how frequent each label is in training (one row added to each, so that none has 0)."""
    counts = Counter(int(row["label"]) for row in train)
    shares = np.array([counts[label] + 1.0 for label in range(len(dataset.labels))])
    shares /= shares.sum()
    guess = int(shares.argmax())
    losses = -np.log(shares)
    return [
        RowScore(str(row["id"]), int(row["label"]), guess, float(shares[guess]), float(losses[int(row["label"])]), 1)
        for row in rows
    ]


def _report(
    spec: EvalSpec,
    adapter: Adapter,
    dataset: Dataset,
    rivals: Mapping[str, Adapter],
    answers: Mapping[str, Sequence[RowScore]],
    step: StepContext,
) -> Report:
    outcomes = {role: Outcomes.of(scores) for role, scores in answers.items()}
    labels = max(2, len(dataset.labels) + 1)
    figures = sample(outcomes, spec.metric, labels, spec.resamples, spec.seed)
    report = Report(
        task=dataset.task,
        adapter_digest=adapter.digest,
        dataset_digest=dataset.digest,
        metric=spec.metric,
        mode=spec.mode,
        rows=len(answers[CANDIDATE]),
        scores=_scores(spec, dataset, outcomes[CANDIDATE], figures[CANDIDATE], labels),
        rivals={role: figures[role].interval(spec.level) for role in _rivals(answers)},
        differences={role: (figures[CANDIDATE] - figures[role]).interval(spec.level) for role in _rivals(answers)},
        rival_digests={role: rival.digest for role, rival in rivals.items()},
    )
    body = _body(spec, report, dataset, outcomes[CANDIDATE])
    (step.out / REPORT).write_text(json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    write_predictions(step.out / PREDICTIONS, answers, dataset)
    return report.model_copy(update={"files": step.keep(REPORT), "traces": step.keep(PREDICTIONS)})


def _rivals(answers: Mapping[str, Any]) -> list[str]:
    return sorted(role for role in answers if role != CANDIDATE)


def _scores(spec: EvalSpec, dataset: Dataset, outcomes: Outcomes, primary: Sampled, labels: int) -> dict[str, Interval]:
    """Every metric of the candidate, the primary one first."""
    others = [metric for metric in task_of(dataset.task_type).metrics if metric != spec.metric]
    scores: dict[str, Interval] = {spec.metric: primary.interval(spec.level)}
    for metric in others:
        figure = sample({CANDIDATE: outcomes}, metric, labels, spec.resamples, spec.seed)[CANDIDATE]
        scores[metric] = figure.interval(spec.level)
    return scores


def _body(spec: EvalSpec, report: Report, dataset: Dataset, outcomes: Outcomes) -> dict[str, Any]:
    """`report.json`: the figures, how they were made, and where the candidate errs."""
    body = {
        "format": 1,
        "spec": spec.model_dump(mode="json", exclude={"batch_tokens"}),
        "interval": "BCa bootstrap over rows, paired",
        **report.model_dump(mode="json", exclude={"files", "traces", "about"}),
    }
    if dataset.task_type == "classification":
        body["labels"] = per_label(outcomes, dataset.labels)
        body["confusion"] = confused_pairs(outcomes, dataset.labels)
    return body
