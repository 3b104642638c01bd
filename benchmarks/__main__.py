"""`python -m benchmarks`: run all, print one JSON row a line, and write docs/benchmarks.md."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import lora, steps
from benchmarks.machine import describe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Measure, print and write."""
    machine = describe()
    rows = [*steps.measure(), *lora.measure(8, 32), *lora.measure(16, 64)]
    for row in rows:
        print(json.dumps(row))
    lines = ["# Benchmarks", "", "Written by `make bench`; medians of interleaved rounds on one machine.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", "| figure | median ms | p90 ms | times PEFT's speed | n |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['figure']} | {row['median_ms']} | {row['p90_ms']} | {row.get('ratio', '')} | {row['n']} |"
        for row in rows
    ]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
