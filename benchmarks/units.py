"""Units of long measurements: what one contestant came to in one turn at one question, kept as soon as it is known.

A bench that is stopped goes on where it stood: a unit that stands for this machine and these libraries is not measured
again unless it is asked for. A unit of ours stands for the project's sources as they are; a unit with times stands for a
day between two starts of the machine, so that times are never set against those of another session.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import rows
from benchmarks.machine import describe, same, session, together


@dataclass(frozen=True)
class Unit:
    """`question` is a digest of everything that was asked: another horizon, say, is another unit. `code` is one of the
    project's sources where ours was asked (see `code.sources`); rivals do not depend on them."""

    figure: str
    task: str
    seed: int
    contestant: str
    turn: int
    question: str
    code: str = ""


class Units:
    """The units in `results/NAME.jsonl`, beside the rows that were made of them. Without `timed` only their scores are
    used, which are worth as much on another day."""

    def __init__(self, name: str, again: bool = False, *, timed: bool = True) -> None:
        self._name, self._machine, self._timed = name, describe(), timed
        self._known: dict[Unit, dict[str, Any]] = {} if again else self._read()

    def facts(self, unit: Unit, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The facts of `unit`: those that stand, else those that `measure` finds now."""
        if unit not in self._known:
            facts = json.loads(json.dumps(dict(measure())))
            line = {"unit": asdict(unit), "facts": facts, "machine": self._machine, "session": session()}
            rows.append(self._name, json.dumps(line, sort_keys=True))
            self._known[unit] = facts
        return self._known[unit]

    def _read(self) -> dict[Unit, dict[str, Any]]:
        path = rows.RESULTS / f"{self._name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return {Unit(**line["unit"]): line["facts"] for line in map(json.loads, lines) if self._stands(line)}

    def _stands(self, line: Mapping[str, Any]) -> bool:
        if "unit" not in line or not same(line["machine"], self._machine):
            return False
        return not self._timed or together(line.get("session"), session())
