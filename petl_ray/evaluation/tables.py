"""Where a classifier errs: precision, recall, F1 and support of each label, and which label was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petl_ray.tasks.metrics import Outcomes, confusion


def per_label(outcomes: Outcomes, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One line a label, in their order; a figure without any row to it is 0. `support` and `predicted` count rows."""
    counts = confusion(outcomes.references, outcomes.predictions, len(labels) + 1)
    lines = []
    for index, label in enumerate(labels):
        hits, support, predicted = counts[index, index], counts[index].sum(), counts[:, index].sum()
        lines.append(
            {
                "label": label,
                "precision": _share(hits, predicted),
                "recall": _share(hits, support),
                "f1": _share(2 * hits, support + predicted),
                "support": int(support),
                "predicted": int(predicted),
            }
        )
    return lines


def confused_pairs(outcomes: Outcomes, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Every cell of the confusion table that has rows, as truth, prediction and rows; most rows first.

    A prediction outside `labels` (of an adapter that learned others) is `null`.
    """
    counts = confusion(outcomes.references, outcomes.predictions, len(labels) + 1)
    cells = [
        {"label": labels[truth], "prediction": labels[guess] if guess < len(labels) else None, "rows": int(rows)}
        for (truth, guess), rows in _nonzero(counts)
    ]
    return sorted(cells, key=lambda cell: (-cell["rows"], cell["label"], cell["prediction"] or ""))


def _nonzero(counts: Any) -> list[tuple[tuple[int, int], int]]:
    return [
        ((int(truth), int(guess)), int(counts[truth, guess])) for truth, guess in zip(*counts.nonzero(), strict=True)
    ]


def _share(part: Any, whole: Any) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0
