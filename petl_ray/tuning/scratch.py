"""Local directories of a search, which end with their process: closed by it, or swept by the next one of this host."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

_LOCK, _FILES = "lock", "files"
_MINE = set[Path]()  # of this process: another one before it may have had its id


class Scratch:
    """An empty directory `path` below `petl-ray-<kind>-<host>-<process>-…`, where temporary files lie.

    Whoever makes one first removes those of its kind whose process on this host was killed. A lock that ends with its
    process holds it as well: where containers share a host's name and its temporary files, a process id of one means
    nothing in another, and the directory of nobody who lives may go.
    """

    def __init__(self, kind: str) -> None:
        mine = f"petl-ray-{kind}-{re.sub(r'[^A-Za-z0-9.]', '_', socket.gethostname())}-"
        _sweep(mine)
        self.root = Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-"))
        _MINE.add(self.root)
        self._lock = (self.root / _LOCK).open("w")  # for as long as this process lives
        with suppress(OSError):  # a file system without locks: its directories are removed by their own process alone
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = self.root / _FILES
        self.path.mkdir(parents=True)  # another container's sweep may have come before the lock

    def close(self) -> None:
        """Remove the directory."""
        _remove(self.root)
        _MINE.discard(self.root)
        self._lock.close()


def _sweep(prefix: str) -> None:
    """Remove what dead processes have left."""
    for root in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        process = root.name.removeprefix(prefix).partition("-")[0]
        if not process.isdecimal() or root in _MINE or (int(process) != os.getpid() and _lives(int(process))):
            continue
        with suppress(OSError), (root / _LOCK).open("r+") as lock:  # unless it is held, or gone, or not ours to touch
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(root)


def _remove(root: Path) -> None:
    """The lock goes last: whoever is killed on the way leaves what the next one can remove."""
    shutil.rmtree(root / _FILES, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether there is such a process here, whoever's it is now."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
