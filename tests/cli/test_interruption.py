"""Ctrl-C and `runs cancel`: one clear line, a code of its own, and a run that can be taken up or has ended for good."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Ask
from tests.tinyplan import command, surroundings

LONG = ("--set", "tasks.mood.training.epochs=1000")  # minutes, of which the test waits for the first second
PLACES = ["none", pytest.param("local", marks=pytest.mark.long)]


@contextmanager
def training(folder: Path, cluster: str) -> Iterator[subprocess.Popen[str]]:
    """A run of the tiny plan that is in the middle of training when the block begins."""
    words = command("run", "plan.yaml", "--cluster", cluster, *LONG)
    run = subprocess.Popen(
        words, cwd=folder, env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("> train mood/default"):
                break
        yield run
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()


@pytest.mark.parametrize("cluster", PLACES)
def test_ctrl_c_says_one_line_and_leaves_a_run_that_can_be_taken_up(work: Path, asked: Ask, cluster: str) -> None:
    with training(work, cluster) as run:
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the whole group hears it
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if "goes on from there" in line]) == 1, err
    (left,) = asked("runs", "ls", "--json").json
    assert left["state"] == "RESUMABLE"
    assert left["steps"]["SUCCEEDED"] >= 1
    cancelled = asked("runs", "cancel", left["id"])
    assert cancelled.code == 0
    assert asked("runs", "ls", "--json").json[0]["state"] == "CANCELLED"


def test_the_same_command_takes_the_interrupted_run_up(work: Path, asked: Ask) -> None:
    with training(work, "none") as run:
        os.killpg(run.pid, signal.SIGINT)
        run.communicate(timeout=60)
    (left,) = asked("runs", "ls", "--json").json
    with training(work, "none") as again:
        os.killpg(again.pid, signal.SIGINT)
        again.communicate(timeout=60)
    (still,) = asked("runs", "ls", "--json").json
    assert (still["id"], still["state"]) == (left["id"], "RESUMABLE")
    shown = asked("runs", "show", left["id"], "--json").json
    assert {step["label"]: step["state"] for step in shown["steps"]}["prepare mood"] == "SUCCEEDED"


def test_a_run_that_is_cancelled_elsewhere_stops_and_says_so(work: Path, asked: Ask) -> None:
    with training(work, "none") as run:
        (row,) = asked("runs", "ls", "--json").json
        assert row["state"] == "RUNNING"
        said = asked("runs", "cancel", row["id"][:8])
        assert (said.code, "asked to stop" in said.err) == (0, True)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert asked("runs", "ls", "--json").json[0]["state"] == "CANCELLED"
