"""`petl-ray runs resume`: a run that was left behind ends as the same run would have ended in one go."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Ask
from tests.tinyplan import call, write_plan

TOO_SMALL = "ray: none\ncpus: 2\nverbs:\n  evaluate: {cpus: 64}\n"


def left_behind(asked: Ask, work: Path, *settings: str) -> str:
    """The id of a run of the tiny plan that failed where nothing could evaluate."""
    (work / "small.yaml").write_text(TOO_SMALL)
    failed = asked("run", "plan.yaml", "--cluster", "small.yaml", "--json", *settings)
    assert failed.code == 5, failed.err
    (row,) = asked("runs", "ls", "--json").json
    assert row["state"] == "FAILED"
    return str(row["id"])


def test_a_run_that_is_taken_up_ends_as_a_run_does(work: Path, asked: Ask) -> None:
    run_id = left_behind(asked, work)
    shown = asked("runs", "show", run_id)
    assert "placement.verbs.evaluate.cpus: asks for 64 in one process; the largest machine has " in shown.out
    again = asked("runs", "resume", run_id)
    assert (again.code, "steps computed" in again.err) == (5, True)
    taken_up = asked("runs", "resume", run_id, "--cluster", "none", "--json")
    assert taken_up.code == 0, taken_up.err
    once_more = asked("run", "plan.yaml", "--cluster", "none", "--json").json
    assert set(taken_up.json) == set(once_more)
    assert taken_up.json["steps"] == {"hit": 3, "done": 3, "failed": 0}
    assert taken_up.json["tasks"][0]["adapter_digest"] == once_more["tasks"][0]["adapter_digest"]


def test_a_run_shows_why_each_of_its_steps_failed(work: Path, asked: Ask) -> None:
    with (work / "data" / "mood.jsonl").open("a") as rows:
        rows.write('{"text": "nobody knows what this is"}\n')
    assert asked("run", "plan.yaml", "--cluster", "none").code
    (row,) = asked("runs", "ls", "--json").json
    (told,) = [line for line in asked("runs", "show", row["id"]).out.splitlines() if line.startswith("FAILED")]
    assert told.startswith("FAILED prepare mood: ") and "label: missing" in told


@pytest.mark.long
def test_what_a_run_serves_that_is_taken_up_is_asked_for_an_answer(tmp_path: Path, tiny_bert: Path, asked: Ask) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_plan(tmp_path, tiny_bert, serving={"port": port})
    learns = ("--set", "tasks.mood.training.epochs=10", "--set", "tasks.mood.gate.yardsticks=[majority]")
    (tmp_path / "small.yaml").write_text(TOO_SMALL.replace("none", "local"))
    assert call(tmp_path, "run", "plan.yaml", "--cluster", "small.yaml", *learns).returncode == 5
    (row,) = json.loads(call(tmp_path, "runs", "ls", "--json").stdout)
    ended = call(tmp_path, "runs", "resume", row["id"], "--cluster", "local")
    assert ended.returncode == 0, ended.stderr
    (answered,) = [line for line in ended.stdout.splitlines() if line.startswith("mood v1: ")]
    assert answered.split(" -> ")[1].split()[0] in ("glad", "sorry")
    (curl,) = [line for line in ended.stdout.splitlines() if line.startswith("  curl ")]
    assert shlex.split(curl)[1] == f"http://127.0.0.1:{port}/v1/classify"
