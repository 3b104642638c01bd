"""Directories of processes that end in every way."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from petl_ray.tuning.scratch import Scratch

MAKE = "import sys; from petl_ray.tuning.scratch import Scratch; made = Scratch(sys.argv[1])"
TELL = "(made.path / 'rows').write_text('secret'); print(made.root, flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def another_process(temporary: Path, kind: str) -> Iterator[Path]:
    """A process that has made a directory; it is killed at the end of the block."""
    command = [sys.executable, "-c", f"{MAKE}; {TELL}", kind]
    env = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        yield Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


def test_what_a_killed_process_left_is_removed_by_the_next_of_its_kind(temporary: Path) -> None:
    with another_process(temporary, "pack") as left, another_process(temporary, "search") as other:
        Scratch("pack").close()
        assert (left / "files" / "rows").exists(), "its process lives"
    Scratch("pack").close()
    assert not left.exists() and other.exists()


def test_what_somebody_else_holds_stays_whatever_its_process_is_called(temporary: Path) -> None:
    """As of a container with the same host name, whose process ids mean nothing here."""
    with another_process(temporary, "pack") as left:
        pass
    with (left / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Scratch("pack").close()
        assert (left / "files" / "rows").exists()
    Scratch("pack").close()
    assert not left.exists()


def test_what_a_process_of_the_same_id_left_is_removed_by_its_lock(temporary: Path) -> None:
    """A container that is started again gives its first process the id it had, and may keep its temporary files."""
    with another_process(temporary, "pack") as left:
        pass
    again = left.rename(left.with_name(re.sub(r"-\d+-", f"-{os.getpid()}-", left.name)))
    mine = Scratch("pack")
    assert not again.exists() and mine.path.is_dir()
    mine.close()


def test_what_a_living_process_made_stays_where_its_lock_does_not_hold() -> None:
    """As on a file system without locks."""
    mine = Scratch("pack")
    mine._lock.close()
    Scratch("pack").close()
    assert mine.path.is_dir()


def test_a_directory_names_its_process_and_goes_when_it_is_closed(temporary: Path) -> None:
    mine = Scratch("pack")
    (mine.path / "deep").mkdir()
    assert f"-{os.getpid()}-" in mine.root.name and mine.root.parent == temporary
    Scratch("pack").close()
    assert mine.path.is_dir()
    mine.close()
    mine.close()
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["petl-ray-pack-other.host-1-abc", "petl-ray-pack-mine", "petl-ray-pack-"])
def test_what_is_not_of_this_host_is_left_alone(temporary: Path, name: str) -> None:
    (temporary / name).mkdir()
    (temporary / name / "lock").touch()
    Scratch("pack").close()
    assert (temporary / name / "lock").exists()
