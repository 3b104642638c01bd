"""A process and everything it started, watched from outside: processor time and proportional memory of the whole tree.

Linux only: `/proc` says who is whose child. A process that was seen once stays in the tree when its parent ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType

_TICKS = os.sysconf("SC_CLK_TCK")


class Watch:
    """Looks at the tree of `root` every `every_s` seconds while its block lasts.

    Processor time of a process is what was last seen of it, so up to `every_s` of each process that ended is missed.
    With `memory` the proportional set size of the tree (`Pss`: shared pages count by share) is noted at every look.
    """

    def __init__(self, root: int, *, memory: bool = False, every_s: float = 0.25) -> None:
        self._root, self._memory, self._every_s = root, memory, every_s
        self._members: dict[int, int] = {}  # pid -> when it started, in ticks
        self._cpu_s: dict[tuple[int, int], float] = {}
        self.pss_mb: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        """Processor seconds of the whole tree, user and system."""
        return sum(self._cpu_s.values())

    def look(self) -> None:
        """Who is there, what it has used."""
        there = _processes()
        self._members = {pid: born for pid, born in self._members.items() if pid in there and there[pid][1] == born}
        parents = {self._root, *self._members}
        while fresh := {pid for pid, (parent, *_) in there.items() if parent in parents} - parents:
            parents |= fresh
        self._members = {pid: there[pid][1] for pid in parents if pid in there}
        for pid, born in self._members.items():
            self._cpu_s[pid, born] = there[pid][2]
        if self._memory:
            self.pss_mb.append(sum(_pss_mb(pid) for pid in self._members))

    def end(self, patience_s: float = 15.0) -> None:
        """Wait until everything the root started is gone; after `patience_s` end what is left."""
        until = time.monotonic() + patience_s
        while self._left() and time.monotonic() < until:
            time.sleep(0.2)
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        self.look()
        return [pid for pid in self._members if pid != self._root]

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self.look()


def _processes() -> dict[int, tuple[int, int, float]]:
    """Parent, start (ticks since boot) and processor seconds of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the name, in brackets, may itself hold blanks and brackets
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] != "Z":
                    used = (int(fields[11]) + int(fields[12])) / _TICKS
                    found[int(entry.name)] = (int(fields[1]), int(fields[19]), used)
    return found


def _pss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has just ended
        return 0.0
    return float(next((line.split()[1] for line in text.splitlines() if line.startswith("Pss:")), 0)) / 1024
