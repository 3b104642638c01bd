"""What a pack keeps as files: the rows of its searches, and the newest checkpoint of every trial that passed there."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from petl_ray.tuning.ledger import Files, read_files, write_files
from petl_ray.tuning.scratch import Scratch


class Shelf:
    """The files of one pack, asked for by many threads; whole checkpoints only are handed out."""

    def __init__(self) -> None:
        self._scratch = Scratch("pack")
        self._lock = threading.Lock()

    def put_rows(self, search: str, files: Files) -> None:
        """Lay down the rows of a search."""
        write_files(self._rows(search), files)

    def rows(self, search: str) -> Path | None:
        """Where the rows of a search lie; None where they do not."""
        return home if (home := self._rows(search)).is_dir() else None

    def put(self, key: str, rung: int, files: Files) -> None:
        """Lay down the checkpoint of a trial at `rung`."""
        with self._lock:
            write_files(self._checkpoint(key, rung), files)

    def files(self, key: str, rung: int) -> Files:
        """The files of a trial's checkpoint at `rung`; empty where there is none."""
        with self._lock:
            return read_files(self._checkpoint(key, rung))

    def newest(self, key: str, before: int) -> Path | None:
        """The checkpoint that a trial continues from to the rung `before`; None if it begins at the start."""
        homes = (self._checkpoint(key, rung) for rung in range(before - 1, -1, -1))
        return next((home for home in homes if home.is_dir()), None)

    def write(self, key: str, rung: int, save: Callable[[Path], None]) -> None:
        """Have a trial's checkpoint at `rung` saved, in the place of those before."""
        with self._lock:
            home = self._checkpoint(key, rung)
            shutil.rmtree(home.parent, ignore_errors=True)
            home.mkdir(parents=True)
            save(home)

    def forget(self, key: str) -> None:
        """Remove the checkpoints of a trial."""
        with self._lock:
            shutil.rmtree(self._checkpoint(key, 0).parent, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        self._scratch.close()

    def _rows(self, search: str) -> Path:
        return self._scratch.path / "data" / search

    def _checkpoint(self, key: str, rung: int) -> Path:
        return self._scratch.path / "checkpoints" / key / str(rung)
