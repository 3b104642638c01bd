"""What a benchmark says: one row a figure, appended as JSON lines; a ratio is ours against a baseline of the same run."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.code import sources
from benchmarks.machine import describe, place

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """`figure` names the question and never what came of it, so that a later row takes the place of an earlier one; what
    else was found stands in `note`.

    `ratio` is always higher-is-better: times as fast, times less memory, or limit / ours. `spread` is the distance of
    the quartiles of ours over its median, None of a single value. `reach` must be met, `aim` is hoped for; None where
    the figure only informs. `interval` is the 95 % interval of ours minus the baseline, paired, in points, where the
    figure is about quality; `gauge` says what reach and aim are compared with, the ratio or that interval's lower end.
    Where a condition of the comparison was broken (a budget, a score to be reached: `held` is False) the figure is
    never well.
    """

    figure: str
    unit: str
    ours: float
    baseline: float
    ratio: float
    spread: float | None
    n: int
    reach: float | None = None
    aim: float | None = None
    interval: tuple[float, float] | None = None
    gauge: Literal["ratio", "interval"] = "ratio"
    held: bool = True
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the reach is met; without an interval nothing is shown by it."""
        if not self.held:
            return False
        if self.reach is None:
            return None
        if self.gauge == "ratio":
            return self.ratio >= self.reach
        return self.interval is not None and self.interval[0] >= self.reach


def timed(contestants: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of every round of every contestant, interleaved so that a busy moment meets all alike."""
    for act in contestants.values():
        for _ in range(warm):
            act()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, act in contestants.items():
            began = time.perf_counter()
            act()
            times[name].append(time.perf_counter() - began)
    return times


def faster(
    figure: str,
    ours: Sequence[float],
    baseline: Sequence[float],
    reach: float | None = None,
    aim: float | None = None,
    note: str = "",
) -> Row:
    """The row of two series of seconds for equal work; milliseconds in the row."""
    mine, theirs = statistics.median(ours), statistics.median(baseline)
    return Row(
        figure,
        "ms",
        round(1e3 * mine, 2),
        round(1e3 * theirs, 2),
        round(theirs / mine, 2),
        spread(ours),
        len(ours),
        reach,
        aim,
        note=note,
    )


def spread(values: Sequence[float]) -> float | None:
    """Distance of the quartiles over the median; None of a single value."""
    if len(values) < 2:
        return None
    low, middle, high = statistics.quantiles(values, n=4)
    return round((high - low) / middle, 3) if middle else 0.0


def paired(
    figure: str,
    ours: Sequence[float],
    baseline: Sequence[float],
    reach: float | None = None,
    aim: float | None = None,
    *,
    tasks: Sequence[str] = (),
    held: bool = True,
    note: str = "",
) -> Row:
    """The row of two series of scores (0…1) of the same questions; percent in the row, the interval in points.

    `reach` and `aim` are points that the interval's lower end must not be below: -1.0 asks that ours be shown not to be
    worse by more than one, 0.0 that it be shown to be no worse at all. The interval takes pairs as independent: it is
    about these tasks. `tasks`, a name for each pair, adds the interval over the tasks' means, which is about others too.
    """
    mine, theirs = statistics.fmean(ours), statistics.fmean(baseline)
    gaps = [100 * (one - other) for one, other in zip(ours, baseline, strict=True)]
    ratio = round(mine / theirs, 4)
    means = [
        statistics.fmean(gap for gap, at in zip(gaps, tasks, strict=True) if at == task) for task in sorted(set(tasks))
    ]
    if between := interval(means):
        note = "; ".join([*([note] if note else []), f"over the means of {len(means)} tasks {told(between)}"])
    return Row(
        figure,
        "%",
        round(100 * mine, 2),
        round(100 * theirs, 2),
        ratio,
        spread(ours),
        len(gaps),
        reach,
        aim,
        interval(gaps),
        "interval",
        held,
        note,
    )


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean by Student's t; None for less than two values."""
    if len(values) < 2:
        return None
    from scipy import stats  # type: ignore[import-untyped]

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    middle = statistics.fmean(values)
    return round(middle - half, 2), round(middle + half, 2)


def told(between: Sequence[float]) -> str:
    """An interval in words."""
    return f"{between[0]:+} … {between[1]:+}"


def keep(row: Row, name: str, machine: Mapping[str, str] | None = None) -> str:
    """Append a row to `results/NAME.jsonl`, unless its newest row says the same; returns the line."""
    line = line_of(row, machine)
    if json.loads(line) not in kept():
        append(name, line)
    return line


def line_of(row: Row, machine: Mapping[str, str] | None = None) -> str:
    """A row with its machine and the code that it is about, as one line of JSON."""
    entry = {**asdict(row), "ok": row.ok, "code": sources(), "machine": dict(machine or describe())}
    return json.dumps(entry, sort_keys=True)


def append(name: str, line: str) -> None:
    """One more line in `results/NAME.jsonl`, durably."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def kept() -> list[dict[str, Any]]:
    """The newest row of every figure on every machine, in the order of files. Lines that hold a unit are no rows; one
    with `retired` says why a figure is no longer measured there, and none is shown."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "figure" in row:
                newest[row["figure"], place(row["machine"])] = row
    return [row for row in newest.values() if "retired" not in row]
