"""Metrics over rows, in numpy: from confusion counts (so that resamples of rows vectorise) and from summed losses.

Accuracy, macro-averaged F1 over the labels that occur, and the multi-class Matthews coefficient R_K
(Gorodkin 2004, Comput. Biol. Chem. 28, 367–374), as scikit-learn defines them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from petl_ray.errors import PlanError
from petl_ray.tasks.batch import RowScore

DIRECTIONS: dict[str, Literal["max", "min"]] = {
    "accuracy": "max",
    "macro_f1": "max",
    "matthews": "max",
    "loss": "min",
    "perplexity": "min",
}


@dataclass(frozen=True)
class Outcomes:
    """Row scores as arrays over rows: int64 references, predictions and units, float64 loss sums."""

    references: NDArray[np.int64]
    predictions: NDArray[np.int64]
    loss_sums: NDArray[np.float64]
    units: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Sequence[RowScore]) -> Outcomes:
        """The arrays of some row scores, in their order."""
        return cls(
            np.array([score.reference for score in scores], dtype=np.int64),
            np.array([score.prediction for score in scores], dtype=np.int64),
            np.array([score.loss_sum for score in scores], dtype=np.float64),
            np.array([score.units for score in scores], dtype=np.int64),
        )


def confusion(references: NDArray[np.int64], predictions: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """Counts [..., labels, labels], truth by prediction, over the last axis of two equally shaped arrays."""
    if references.shape != predictions.shape:
        raise ValueError(f"references {references.shape} and predictions {predictions.shape} must have one shape")
    outer = references.shape[:-1]
    cells = (references * labels + predictions).reshape(-1, references.shape[-1])
    shift = np.arange(cells.shape[0])[:, None] * labels * labels
    counts = np.bincount((cells + shift).ravel(), minlength=cells.shape[0] * labels * labels)
    return counts.reshape(*outer, labels, labels).astype(np.int64)


def from_confusion(metric: str, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """A metric of counts [..., labels, labels]; shape [...]. Raises PlanError for a metric not made of counts."""
    if metric not in _FROM_COUNTS:
        raise PlanError("metric", f"got {metric!r}", "it is not made of counts", f"Choose {', '.join(_FROM_COUNTS)}")
    return np.asarray(_FROM_COUNTS[metric](counts.astype(np.float64)), dtype=np.float64)


def measure(metric: str, outcomes: Outcomes, labels: int = 2) -> float:
    """One metric over all rows. `loss` is the mean over units in nats, `perplexity` its exponential."""
    if metric in ("loss", "perplexity"):
        loss = float(outcomes.loss_sums.sum() / max(int(outcomes.units.sum()), 1))
        return loss if metric == "loss" else math.exp(min(loss, 700.0))
    return float(from_confusion(metric, confusion(outcomes.references, outcomes.predictions, labels)))


def _accuracy(counts: NDArray[np.float64]) -> Any:
    right = np.trace(counts, axis1=-2, axis2=-1)
    return _ratio(right, counts.sum((-2, -1)))


def _macro_f1(counts: NDArray[np.float64]) -> Any:
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    both = counts.sum(-1) + counts.sum(-2)
    occurs = both > 0
    return _ratio(_ratio(2 * hits, both).sum(-1), occurs.sum(-1))


def _matthews(counts: NDArray[np.float64]) -> Any:
    truth, guess, rows = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
    right = np.trace(counts, axis1=-2, axis2=-1)
    covariance = right * rows - (truth * guess).sum(-1)
    spread = (rows**2 - (truth**2).sum(-1)) * (rows**2 - (guess**2).sum(-1))
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0.0)))


def _ratio(above: Any, below: Any) -> Any:
    """`above / below`, and 0 where `below` is 0."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


_FROM_COUNTS = {"accuracy": _accuracy, "macro_f1": _macro_f1, "matthews": _matthews}
