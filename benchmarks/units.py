"""Units of long measurements: what one contestant came to in one turn at one question, kept as soon as it is known.

A bench that is stopped goes on where it stood: a unit that stands for this machine and these libraries is not measured
again unless it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import rows
from benchmarks.machine import describe, same


@dataclass(frozen=True)
class Unit:
    """`question` is a digest of everything that was asked: another horizon, say, is another unit."""

    figure: str
    task: str
    seed: int
    contestant: str
    turn: int
    question: str


class Units:
    """The units in `results/NAME.jsonl`, beside the rows that were made of them."""

    def __init__(self, name: str, again: bool = False) -> None:
        self._name, self._machine = name, describe()
        self._known: dict[Unit, dict[str, Any]] = {} if again else self._read()

    def facts(self, unit: Unit, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The facts of `unit`: those that stand, else those that `measure` finds now."""
        if unit not in self._known:
            facts = json.loads(json.dumps(dict(measure())))
            line = {"unit": asdict(unit), "facts": facts, "machine": self._machine}
            rows.append(self._name, json.dumps(line, sort_keys=True))
            self._known[unit] = facts
        return self._known[unit]

    def _read(self) -> dict[Unit, dict[str, Any]]:
        path = rows.RESULTS / f"{self._name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        found = [line for line in map(json.loads, lines) if "unit" in line and same(line["machine"], self._machine)]
        return {Unit(**line["unit"]): line["facts"] for line in found}
