"""Metrics against scikit-learn as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

from petl_ray.errors import PlanError
from petl_ray.tasks import DIRECTIONS, TASKS, Outcomes, confusion, from_confusion, measure, task_of


def _random(seed: int, rows: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, labels, rows)
    guess = np.where(random.random(rows) < 0.6, truth, random.integers(0, labels, rows))
    return truth, guess


@pytest.mark.parametrize(("seed", "rows", "labels"), [(0, 50, 2), (1, 200, 6), (2, 12, 9), (3, 1, 3)])
def test_metrics_equal_those_of_scikit_learn(seed: int, rows: int, labels: int) -> None:
    truth, guess = _random(seed, rows, labels)
    zeros = np.zeros(rows)
    outcomes = Outcomes(truth, guess, zeros, np.ones(rows, dtype=np.int64))
    assert measure("accuracy", outcomes, labels) == pytest.approx(accuracy_score(truth, guess))
    assert measure("macro_f1", outcomes, labels) == pytest.approx(f1_score(truth, guess, average="macro"))
    assert measure("matthews", outcomes, labels) == pytest.approx(matthews_corrcoef(truth, guess))


def test_confusion_counts_whole_stacks_of_resamples_at_once() -> None:
    truth, guess = _random(4, 40, 5)
    picks = np.random.default_rng(0).integers(0, 40, (7, 40))
    stacked = confusion(truth[picks], guess[picks], 5)
    assert stacked.shape == (7, 5, 5)
    for pick, counts in zip(picks, stacked, strict=True):
        assert (counts == confusion_matrix(truth[pick], guess[pick], labels=range(5))).all()
    one_by_one = [f1_score(truth[pick], guess[pick], average="macro") for pick in picks]
    assert from_confusion("macro_f1", stacked) == pytest.approx(one_by_one)


def test_one_prediction_for_all_rows_has_a_matthews_of_zero() -> None:
    truth = np.array([0, 1, 1, 2])
    assert float(from_confusion("matthews", confusion(truth, np.ones(4, dtype=np.int64), 3))) == 0.0


def test_loss_divides_by_units_not_by_rows() -> None:
    outcomes = Outcomes(np.ones(2, dtype=np.int64), np.ones(2, dtype=np.int64), np.array([3.0, 1.0]), np.array([3, 1]))
    assert measure("loss", outcomes) == 1.0
    assert measure("perplexity", outcomes) == pytest.approx(np.e)


def test_a_metric_that_is_not_made_of_counts_is_refused() -> None:
    with pytest.raises(PlanError, match="loss"):
        from_confusion("loss", np.eye(2, dtype=np.int64))


def test_every_metric_of_every_task_has_a_direction() -> None:
    for task in TASKS.values():
        assert set(task.metrics) <= set(DIRECTIONS)


def test_an_unknown_task_type_is_named() -> None:
    with pytest.raises(PlanError, match="regresion"):
        task_of("regresion")
