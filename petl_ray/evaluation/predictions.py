"""Every system's answer to every row, as Parquet: the trace behind a report, for people who want to look closer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from petl_ray.artifact import Dataset
from petl_ray.tasks import RowScore

PREDICTIONS = "predictions.parquet"


def write_predictions(path: Path, answers: Mapping[str, Sequence[RowScore]], dataset: Dataset) -> None:
    """Columns `id`, for classification `label`, and per role `ROLE.prediction`, `ROLE.probability`, `ROLE.loss`.

    Predictions are label names (null where the adapter answered with a label that the dataset has not), for language
    models whether greedy decoding gives exactly the completion. Losses are nats, summed over the row's `ROLE.units`.
    """
    first = next(iter(answers.values()))
    columns: dict[str, pa.Array] = {"id": pa.array([score.id for score in first])}
    names = [*dataset.labels, None]
    labelled = dataset.task_type == "classification"
    if labelled:
        columns["label"] = pa.array([names[score.reference] for score in first], pa.string())
    for role, scores in answers.items():
        if labelled:
            predictions = pa.array([names[score.prediction] for score in scores], pa.string())
        else:
            predictions = pa.array([bool(score.prediction) for score in scores])
        columns[f"{role}.prediction"] = predictions
        columns[f"{role}.probability"] = pa.array([score.probability for score in scores], pa.float64())
        columns[f"{role}.loss"] = pa.array([score.loss_sum for score in scores], pa.float64())
        columns[f"{role}.units"] = pa.array([score.units for score in scores], pa.int64())
    pq.write_table(pa.table(columns), path)
