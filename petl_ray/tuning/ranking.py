"""Every trial of a search in one order: who came furthest first, among them the best scores, each beside the default."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

TABLE, TIMES = "trials.jsonl", "timings.jsonl"


class RankedTrial(BaseModel):
    """One trial's place. `rungs` it has reached, the `share` of the horizon that it stood at last and its `score` there.

    `gain` is that score minus the default recipe's at the same rung; both are None where nothing was scored. `seconds`
    are its own in the slots, over all attempts. `parents` says at which share it became a copy of which trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    number: int
    state: str
    rungs: int
    share: float
    score: float | None
    gain: float | None
    seconds: float
    overrides: dict[str, Any]
    parents: dict[str, int] = {}
    bracket: int | None = None
    reason: str = ""


def ranked_trials(directory: Path, mode: Literal["max", "min"]) -> tuple[RankedTrial, ...]:
    """The trials of a Trial artifact whose files lie in `directory`, the winner first.

    Of equals the lowest number comes first; what diverged or was rejected stands behind what came as far and did not.
    """
    rows = _read(directory / TABLE)
    default = next(row["scores"] for row in rows if row["number"] == 0)
    seconds: defaultdict[int, float] = defaultdict(float)
    for timing in _read(directory / TIMES):
        seconds[timing["number"]] += float(timing.get("seconds", 0.0))
    ordered = sorted(rows, key=lambda row: _place(row, mode))
    return tuple(_ranked(rank, row, default, seconds[row["number"]]) for rank, row in enumerate(ordered, start=1))


def _place(row: Mapping[str, Any], mode: str) -> tuple[int, bool, float, int]:
    scores = list(row["scores"].values())
    score = float(scores[-1]) if scores else 0.0
    return -len(scores), row["state"] in ("diverged", "rejected"), -score if mode == "max" else score, row["number"]


def _ranked(rank: int, row: Mapping[str, Any], default: Mapping[str, float], seconds: float) -> RankedTrial:
    share, score = list(row["scores"].items())[-1] if row["scores"] else ("0.0", None)
    beside = default.get(share)
    return RankedTrial(
        rank=rank,
        number=row["number"],
        state=row["state"],
        rungs=len(row["scores"]),
        share=float(share),
        score=score,
        gain=None if score is None or beside is None else score - beside,
        seconds=round(seconds, 3),
        **{name: row[name] for name in ("overrides", "parents", "bracket", "reason") if name in row},
    )


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
