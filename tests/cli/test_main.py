"""The command itself: quick to answer, and silent about what it stands on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from petl_ray import __version__
from tests.cli.conftest import Ask
from tests.tinyplan import surroundings

HEAVY = ("torch", "ray", "mlflow", "transformers", "pandas")


def test_the_command_answers_without_loading_what_only_a_run_needs(tmp_path: Path) -> None:
    code = f"import sys, petl_ray.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=surroundings(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_version_is_told(asked: Ask) -> None:
    said = asked("--version")
    assert (said.code, said.out.strip()) == (0, __version__)


def test_every_command_explains_itself(asked: Ask) -> None:
    words = ["run", "validate", "plan", "schema", "serve", "predict", "submit", "scheduler", "runs", "adapters"]
    for word in (*words, "schedule", "runs adopt", "adapters why", "schedule add"):
        said = asked(*word.split(), "--help")
        assert said.code == 0
        assert "Usage: " in said.out


def test_a_searched_path_on_the_command_line_is_explained(asked: Ask) -> None:
    assert "search.space.method.rank=[2,4]" in "".join(asked("run", "--help").out.split())
