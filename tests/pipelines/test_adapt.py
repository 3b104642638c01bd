"""What a run has come to when the last of its steps cannot be done: it was paid for, and is told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from petl_ray.orchestration import Home, Placement, rehearse, runs, start_run
from petl_ray.plan import read_plan
from petl_ray.scheduling.launch import lock_at
from pipelines.adapt import adapt
from pipelines.retrain import retrain
from pipelines.summary import NOTHING_SERVED, Summary
from tests.cli.conftest import petl_ray as asked
from tests.tinyplan import call, write_plan

HERE = Placement(ray="none", cpus=2)
PASSES = "tasks.mood.gate.yardsticks=[majority]"
LEARNS = "tasks.mood.training.epochs=10"


@pytest.fixture
def held_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


@pytest.fixture
def work(tmp_path: Path, tiny_bert: Path, held_port: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose plan serves, at a port that somebody holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PETL_RAY_HOME", raising=False)
    write_plan(tmp_path, tiny_bert, serving={"port": held_port})
    return tmp_path


def ended(*settings: str, pipeline: Any = adapt) -> tuple[Summary, dict[str, Any]]:
    """The summary of a run of the plan in this process, and what its home tells of it."""
    home = Home.at()
    locked = lock_at(read_plan(Path("plan.yaml"), settings), home, HERE)
    whole = locked.model_dump(mode="json")
    with start_run(home, pipeline=locked.pipeline, locked=whole, digest=locked.digest, placement=HERE) as run:
        summary: Summary = pipeline(run, locked)
        run.summary = summary.model_dump(mode="json")
    return summary, runs.show(home, run.id)


def test_a_run_whose_deployment_fails_is_summarized_and_has_failed(work: Path) -> None:
    summary, shown = ended(PASSES, LEARNS)
    assert list(summary.failures) == ["deploy"]
    assert (summary.exit_code, summary.endpoint, summary.note) == (8, None, None)
    (task,) = summary.tasks
    assert (task.task, task.status, task.version) == ("mood", "champion", 1)
    assert shown["state"] == "FAILED"
    assert Summary.model_validate(shown["summary"]) == summary


def test_a_first_candidate_that_is_refused_leaves_nothing_to_serve_and_that_is_no_failure(work: Path) -> None:
    refuses = ("tasks.mood.training.learning_rate=1e-9", "tasks.mood.gate.yardsticks=[head_only]")
    summary, shown = ended(*refuses)
    assert [task.status for task in summary.tasks] == ["refused"]
    assert (summary.failures, summary.exit_code, summary.endpoint) == ({}, 0, None)
    assert summary.note == NOTHING_SERVED
    assert shown["state"] == "SUCCEEDED"
    assert "deploy" not in {step["verb"] for step in shown["steps"]}


def test_a_candidate_that_is_refused_beside_a_champion_leaves_the_champion_served(work: Path) -> None:
    ended(PASSES, LEARNS)
    summary, shown = ended("tasks.mood.training.learning_rate=1e-9")
    assert [task.status for task in summary.tasks] == ["refused"]
    assert "deploy" in {step["verb"] for step in shown["steps"]}
    assert summary.note is None


def test_a_rehearsal_tells_of_the_deployment(work: Path) -> None:
    home = Home.at()
    locked = lock_at(read_plan(Path("plan.yaml")), home, HERE)
    assert [step.verb for step in rehearse(home, HERE, lambda run: adapt(run, locked))][-1] == "deploy"


def test_a_run_that_has_nothing_to_do_asks_no_server_of_an_earlier_one(work: Path) -> None:
    """The first run's server ended with its driver."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plan = write_plan(work, work / "base", pipeline="retrain", serving={"port": port})
    home = Home.at()
    locked = lock_at(read_plan(plan), home, HERE)
    whole = locked.model_dump(mode="json")
    with start_run(home, pipeline="retrain", locked=whole, digest=locked.digest, placement=HERE) as run:
        served = retrain(run, locked.model_copy(update={"serving": None}))
        run.summary = served.model_copy(update={"endpoint": f"http://127.0.0.1:{port}"}).model_dump(mode="json")
    again = asked("run", "plan.yaml", "--json")
    assert again.code == 0, again.err
    assert (again.json["endpoint"], again.json["samples"]) == (None, {})
    assert again.json["note"] == f"nothing to do: data, base and plan are those of run {run.id}"
    (then,), (now,) = json.loads(served.model_dump_json())["tasks"], again.json["tasks"]
    assert {**now, "status": "", "reasons": []} == {**then, "status": "", "reasons": []}
    told = asked("run", "plan.yaml", "--keep-serving")
    assert (told.code, "`petl-ray serve plan.yaml` serves the champions" in told.err) == (0, True)


def test_a_run_that_has_nothing_to_do_tells_who_is_the_champion_today(work: Path) -> None:
    write_plan(work, work / "base", pipeline="retrain")
    first, _ = ended(PASSES, LEARNS, pipeline=retrain)
    assert (first.tasks[0].version, first.tasks[0].status) == (1, "champion")
    assert first.tasks[0].sample_label in ("glad", "sorry")
    ended("tasks.mood.training.learning_rate=1e-9", pipeline=retrain)
    assert asked("adapters", "promote", "mood", "2", "--reason", "a try").code == 0
    again, shown = ended(PASSES, LEARNS, pipeline=retrain)
    (task,) = again.tasks
    said = "version 2 is the champion today; what this plan put forward, version 1, is registered."
    assert (task.version, task.status, task.reasons) == (1, "registered", (said,))
    told = asked("runs", "show", shown["id"])
    assert "nothing to do: data, base and plan are those of run" in told.out and "attempts" not in told.out
    assert asked("adapters", "promote", "mood", "1", "--reason", "back again").code == 0
    (task,) = ended(PASSES, LEARNS, pipeline=retrain)[0].tasks
    assert (task.version, task.status, task.reasons) == (1, "champion", ("version 1 is the champion today.",))


@pytest.mark.long
def test_a_nightly_plan_that_serves_ends_well_twice(tmp_path: Path, tiny_bert: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_plan(tmp_path, tiny_bert, pipeline="retrain", serving={"port": port})
    first, second = (call(tmp_path, "run", "plan.yaml", "--set", PASSES, "--set", LEARNS) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "Try it yourself: `petl-ray serve plan.yaml`, then" in first.stdout
    assert f"curl http://127.0.0.1:{port}/v1/classify" in first.stdout
    assert second.returncode == 0, second.stderr
    assert "nothing to do" in second.stdout
    assert "accuracy" in second.stdout and "curl" not in second.stdout
