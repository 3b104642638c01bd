"""`python -m benchmarks [--quick] [NAME …]`: measure, append rows to results/, print them, write docs/benchmarks.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import packs, step, steps
from benchmarks.rows import Row, keep, kept

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BENCHES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "step": step.measure,
    "packs": packs.measure,
    "durability": steps.measure,
}


def main() -> None:
    """Measure what was asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="which; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shapes: under five minutes in all")
    asked = parser.parse_args()
    for name in asked.names or BENCHES:
        for row in BENCHES[name](asked.quick):
            print(keep(row, name), flush=True)
    write_page()


def write_page() -> None:
    """The page from all kept rows: the newest of every figure on every machine."""
    rows = kept()
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`make bench QUICK=1`: under five minutes) from the rows in `benchmarks/results/`.",
        "Ratios are medians of interleaved rounds in one run, correctness checked first; higher is better. `reach` must",
        "be met, `aim` is hoped for.",
    ]
    for cpu in dict.fromkeys(row["machine"]["cpu"] for row in rows):
        mine = [row for row in rows if row["machine"]["cpu"] == cpu]
        facts = {**mine[-1]["machine"]}
        lines += ["", f"## {facts.pop('cpu')}", "", ", ".join(f"{name} {value}" for name, value in facts.items()), ""]
        lines += [
            "| figure | ours | baseline | ratio | reach | aim | ok | spread | n |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in mine]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _line(row: dict[str, object]) -> str:
    ok = {True: "yes", False: "no", None: ""}[row["ok"]]  # type: ignore[index]
    bounds = ["" if row[name] is None else f"{row[name]}" for name in ("reach", "aim")]
    unit = row["unit"]
    cells = [row["figure"], f"{row['ours']} {unit}", f"{row['baseline']} {unit}", row["ratio"], *bounds, ok]
    return f"| {' | '.join(str(cell) for cell in [*cells, row['spread'], row['n']])} |"


if __name__ == "__main__":
    main()
