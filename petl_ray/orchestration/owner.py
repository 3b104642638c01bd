"""Who works: one attempt of one process on one machine, so written that a neighbour can tell if it is alive."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """An attempt (random hex), and the process behind it.

    `machine` is the boot id and the pid namespace: only inside one of both does a process id mean the same process.
    `started` is the process's start in clock ticks since boot, since process ids come round again.
    """

    attempt: str
    host: str
    machine: str
    pid: int
    started: int

    @classmethod
    def new(cls) -> Owner:
        """A fresh attempt of this process."""
        return cls(secrets.token_hex(8), socket.gethostname()[:60], _machine(), os.getpid(), _started(os.getpid()) or 0)

    def __str__(self) -> str:
        return f"{self.attempt} {self.host} {self.machine} {self.pid} {self.started}"

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner that `text` names; None if it is none of ours."""
        parts = text.split(" ")
        if len(parts) != 5 or not (parts[3].isdigit() and parts[4].isdigit()):
            return None
        return cls(parts[0], parts[1], parts[2], int(parts[3]), int(parts[4]))

    @property
    def is_known_dead(self) -> bool:
        """Whether this machine can say for sure that the process is gone; False where it cannot know."""
        if not self.machine or self.machine != _machine() or not self.started:
            return False
        return _started(self.pid) != self.started


@lru_cache(maxsize=1)
def _machine() -> str:
    """Boot id and pid namespace; empty where the system does not tell (then only the expiry of a claim counts)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Start of a living process in clock ticks since boot; None if it is gone or a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()  # the command's name may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])
