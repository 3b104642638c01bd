"""`python -m benchmarks [--quick] [--again] [NAME …]`: measure, keep rows in results/, print them, write docs/benchmarks.md.

Without a name: all of them, or with --quick those that take five minutes together. The long ones keep what every
contestant came to as soon as it is known, and go on there when they are started again on the same day; with --quick
everything is measured now, printed, and neither kept nor written to the page: rows of fewer rounds replace no others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import packs, quality, questions, quickstart, search, step, steps
from benchmarks.machine import place
from benchmarks.rows import Row, keep, kept, line_of, told

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Bench:
    """`measure(quick, again)` yields rows; `quick` says whether it belongs to the five minutes."""

    measure: Callable[[bool, bool], Iterator[Row]]
    quick: bool


BENCHES = {
    "step": Bench(lambda quick, again: step.measure(quick), True),
    "packs": Bench(packs.measure, True),
    "durability": Bench(lambda quick, again: steps.measure(quick), True),
    "quickstart": Bench(quickstart.measure, False),
    "throughput": Bench(search.throughput, False),
    "cost": Bench(search.cost, False),
    "winners": Bench(quality.winners, False),
    "tuning": Bench(quality.tuning, False),
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="which; default: all, or the quick ones")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shapes: under five minutes in all")
    parser.add_argument("--again", action="store_true", help="measure what stands for this machine once more")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from what is kept")
    asked = parser.parse_args()
    names = asked.names or [name for name, bench in BENCHES.items() if bench.quick or not asked.quick]
    try:
        for name in [] if asked.page else names:
            for row in BENCHES[name].measure(asked.quick, asked.again or asked.quick):
                print(line_of(row) if asked.quick else keep(row, name), flush=True)
    finally:
        questions.clean()
        if not asked.quick:
            write_page()


def write_page() -> None:
    """The page from all kept rows: the newest of every figure on every machine."""
    rows = kept()
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from the rows in `benchmarks/results/` (`make bench QUICK=1` prints some in five minutes).",
        "Times are medians of rounds, ours and the baseline's in turn, in one run; a peak of memory is that of fresh",
        "processes, one each. Correctness is checked first; a ratio is better where it is higher. `reach`",
        "must be met, `aim` is hoped for. `interval` is the 95 % interval of ours minus the baseline, paired, in points;",
        "a bound in points is one of its lower end. A figure whose conditions were not kept (see its note) is not ok.",
        "`code` names the sources that were measured (`benchmarks/code.py`); a row with none is older than that column.",
        "",
        "(a) is Ray Tune with one function trial a process, transformers' Trainer and PEFT; (b) Ray Tune with actors that",
        "are used again and a bare PEFT loop in the precision and with the threads that are fastest on that machine.",
        "Core-seconds are wall clock times reserved cores, of the whole process with all its start-up. Each contestant's",
        "sweep is one run, kept; theirs and ours may lie hours apart on one boot of the machine, where sweeps of ours have",
        "differed by up to 7 % between runs: a ratio within that of its bound is no more than met.",
    ]
    for where in dict.fromkeys(place(row["machine"]) for row in rows):
        mine = [row for row in rows if place(row["machine"]) == where]
        facts = {name: value for name, value in mine[-1]["machine"].items() if value != where}
        lines += ["", f"## {where}", "", ", ".join(f"{name} {value}" for name, value in facts.items()), ""]
        lines += [
            "| figure | ours | baseline | ratio | reach | aim | ok | interval | spread | n | code | note |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in mine]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _line(row: dict[str, object]) -> str:
    points = " points" if row.get("gauge") == "interval" else ""
    ok = {True: "yes", False: "no", None: ""}[row["ok"]]  # type: ignore[index]
    bounds = ["" if row[name] is None else f"{row[name]}{points}" for name in ("reach", "aim")]
    between = row.get("interval")
    ends = told(between) if isinstance(between, list) else ""
    unit = row["unit"]
    cells = [row["figure"], f"{row['ours']} {unit}", f"{row['baseline']} {unit}", row["ratio"], *bounds, ok, ends]
    apart = "" if row["spread"] is None else row["spread"]
    cells += [apart, row["n"], str(row.get("code", ""))[:8], row.get("note", "")]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    main()
