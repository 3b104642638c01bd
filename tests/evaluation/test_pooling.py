"""One figure over many tasks: paired, pooled over rows, each task with its own weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from petl_ray.evaluation.pooling import gains, pooled, pooled_over


def predictions(path: Path, ours: list[str | None], theirs: list[str]) -> Path:
    columns = {"label": ["a"] * len(ours), "candidate.prediction": ours, "head_only.prediction": theirs}
    pq.write_table(pa.table(columns), path)
    return path


def test_a_gain_is_counted_row_by_row(tmp_path: Path) -> None:
    path = predictions(tmp_path / "p.parquet", ["a", "a", "b", None], ["a", "b", "a", "b"])
    found = gains(path, "head_only")
    assert found is not None
    assert found.tolist() == [0.0, 1.0, -1.0, 0.0]


def test_a_rival_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    path = predictions(tmp_path / "p.parquet", ["a"], ["b"])
    assert gains(path, "champion") is None
    assert set(pooled_over({"one": path}, ["head_only", "champion"])) == {"head_only"}


def test_the_pooled_gain_is_the_mean_over_all_rows() -> None:
    large, small = np.array([1.0] * 30 + [0.0] * 70), np.array([-1.0, 1.0, 1.0, 1.0])
    found = pooled([large, small])
    assert found.value == pytest.approx(32 / 104, abs=1e-6)
    assert found.low < found.value < found.high


def test_certainty_has_no_width_and_the_same_rows_give_the_same_interval() -> None:
    assert pooled([np.ones(50)]).low == 1.0
    rows = np.array([1.0, 0.0, -1.0, 1.0] * 20)
    assert pooled([rows]) == pooled([rows])


def test_no_rows_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to pool"):
        pooled([])
