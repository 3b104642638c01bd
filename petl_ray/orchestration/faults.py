"""Death on demand, for tests of durability: the one place where this process may kill itself.

`PETL_RAY_FAULT="verb:point[:nth]"` sends SIGKILL to this process when `verb` passes `point` for the nth time
(default 1); `*` stands for every verb. With `PETL_RAY_FAULT_ONCE=path` it happens only while
`path` does not exist, and creates it.
Points in their order: `submitted` (driver, job handed out), `claimed`, `in-rung` (before a fact is recorded),
`after-rung`, `mid-progress` (files written, manifest not), `after-progress`, `before-manifest`, `after-manifest`,
`after-record`, `after-journal`. Without the variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

POINTS = (
    "submitted",
    "claimed",
    "in-rung",
    "after-rung",
    "mid-progress",
    "after-progress",
    "before-manifest",
    "after-manifest",
    "after-record",
    "after-journal",
)

_WANTED = os.environ.get("PETL_RAY_FAULT", "")
_passed: Counter[str] = Counter()


def fault(verb: str, point: str) -> None:
    """Die here if that was asked for."""
    if _WANTED:
        _maybe_die(verb, point)


def _maybe_die(verb: str, point: str) -> None:
    wanted_verb, wanted_point, *nth = _WANTED.split(":")
    if wanted_verb not in ("*", verb) or wanted_point != point:
        return
    _passed[point] += 1
    if _passed[point] != int(nth[0] if nth else 1):
        return
    if once := os.environ.get("PETL_RAY_FAULT_ONCE"):
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
