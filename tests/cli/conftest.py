"""The command as its user meets it: words in; exit code, stdout and stderr out."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from petl_ray.cli.main import main
from tests.tinyplan import write_plan


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as one JSON document."""
        return json.loads(self.out)


def petl_ray(*words: str) -> Said:
    """The whole command in this process, through its `main`: what reaches a terminal, tracebacks of ours included."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["petl-ray", *words]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    finally:
        sys.argv = before
    return Said(code, out.getvalue(), err.getvalue())


Ask = Callable[..., Said]


@contextmanager
def _standing_in(folder: Path) -> Iterator[None]:
    before, there = os.environ.copy(), Path.cwd()
    for name in ("PETL_RAY_HOME", "PETL_RAY_STORE", "PETL_RAY_DATABASE", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(there)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def work(tmp_path: Path, tiny_bert: Path) -> Iterator[Path]:
    """A working directory of its own with the tiny plan in it."""
    folder = tmp_path / "work"
    write_plan(folder, tiny_bert)
    with _standing_in(folder):
        yield folder


@pytest.fixture
def asked() -> Ask:
    """`petl-ray` with the words given."""
    return petl_ray
