"""A user's way through the command: run, look, run again, ask why, and go back."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.tinyplan import SEARCH, call, write_plan

RUN = ("run", "plan.yaml", "--cluster", "none", "--json")


def said(folder: Path, *words: str) -> Any:
    done = call(folder, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[Path, Any]:
    """A working directory in which the tiny plan was run once, and what that run printed."""
    folder = tmp_path_factory.mktemp("journey")
    write_plan(folder, tiny_bert)
    return folder, said(folder, *RUN)


def test_a_run_prints_one_json_document_about_every_task(finished: tuple[Path, Any]) -> None:
    _, summary = finished
    (task,) = summary["tasks"]
    assert (task["task"], task["version"], task["metric"]) == ("mood", 1, "accuracy")
    assert set(task["scores"]) == {"majority", "head_only", "default"}
    assert summary["failures"] == {}
    assert summary["steps"]["done"] == 6


def test_the_same_command_again_trains_nothing(finished: tuple[Path, Any]) -> None:
    folder, first = finished
    again = said(folder, *RUN)
    assert again["tasks"][0]["adapter_digest"] == first["tasks"][0]["adapter_digest"]
    assert again["steps"] == {"hit": 4, "done": 2, "failed": 0}  # register and promote are asked of the world again


def test_a_plan_says_what_is_found(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    rows = said(folder, "plan", "plan.yaml", "--json")
    assert [row["status"] for row in rows if row["step"].split()[0] in ("prepare", "train", "evaluate")] == ["hit"] * 4


def test_a_plan_says_why_something_would_be_computed_again(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    rows = said(folder, "plan", "plan.yaml", "--json", "--set", "tasks.mood.training.learning_rate=0.02")
    train = next(row for row in rows if row["step"] == "train mood/default")
    assert train["status"] == "miss"
    assert "learning_rate" in train["why"]


def test_a_plan_says_how_trials_are_packed_into_memory_and_what_earlier_runs_teach(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    wide = {**SEARCH, "trials": 1024, "generation": 1024}  # fills whatever packs there are
    search = ("--cluster", "none", "--set", f"tasks.mood.search={json.dumps(wide)}")
    found = {row["step"]: row for row in said(folder, "plan", "plan.yaml", *search, "--json")}
    assert found["prepare mood"]["packing"] is None
    packing = found["search mood"]["packing"]
    assert packing["engine"] == "packed" and packing["slots"] == 4
    assert packing["machine_bytes"] > packing["base_bytes"] + packing["pass_bytes"] + 4 * packing["slot_bytes"] > 0
    assert packing["why"].startswith("packed: 4 slots of ") and packing["calibration"].startswith(
        "calibrated from 1 run "
    )
    done = call(folder, "plan", "plan.yaml", *search)
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("search mood: ")]
    assert packing["why"].split(" fit into")[0] in told
    assert (f"{packing['packs']} packs, each with its share" in told) is (packing["packs"] > 1)
    solo = ("--set", "tasks.mood.search.engine=solo")
    alone = {row["step"]: row for row in said(folder, "plan", "plan.yaml", *search, *solo, "--json")}["search mood"]
    assert alone["packing"]["slots"] == 1 and alone["packing"]["why"].startswith("solo: as asked")
    assert alone["name"] == found["search mood"]["name"]


def test_runs_are_listed_and_shown(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    runs = said(folder, "runs", "ls", "--json")
    assert {(run["state"], run["plan"]) for run in runs} == {("SUCCEEDED", "tiny")}
    shown = said(folder, "runs", "show", runs[-1]["id"], "--json")
    assert [step["state"] for step in shown["steps"]] == ["SUCCEEDED"] * 6
    assert said(folder, "runs", "logs", runs[-1]["id"], "--json") is not None


def test_a_finished_run_is_neither_resumed_nor_cancelled(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    run_id = said(folder, "runs", "ls", "--json")[0]["id"]
    for word in ("resume", "cancel"):
        done = call(folder, "runs", word, run_id)
        assert done.returncode == 8
        assert "SUCCEEDED" in done.stderr


def test_somebody_can_say_why(finished: tuple[Path, Any]) -> None:
    folder, summary = finished
    (listed,) = said(folder, "adapters", "ls", "--json")
    assert listed["adapter_digest"] == summary["tasks"][0]["adapter_digest"]
    assert said(folder, "adapters", "history", "--json")[-1]["version"] == 1
    status = summary["tasks"][0]["status"]
    reasons = said(folder, "adapters", "why", "mood", "1", "--json")
    assert (status == "champion") == any(row["action"] == "promote" for row in reasons)
    assert any("head_only" in sentence for row in reasons for sentence in row["reasons"])


def test_a_version_is_promoted_by_hand_with_a_reason(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    row = said(folder, "adapters", "promote", "mood", "1", "--reason", "the pilot wants it", "--actor", "me", "--json")
    assert (row["version"], row["actor"]) == (1, "me")
    assert "the pilot wants it" in " ".join(row["reasons"])
    assert call(folder, "adapters", "promote", "mood", "7", "--reason", "x").returncode == 7


def test_the_schema_is_json_and_the_plan_is_valid(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    assert said(folder, "schema")["title"].startswith("petl-ray plan")
    assert said(folder, "validate", "plan.yaml", "--json")["tasks"] == ["mood"]


def test_a_search_and_its_gain_are_in_the_table_and_nobody_else_talks(tmp_path: Path, tiny_bert: Path) -> None:
    write_plan(tmp_path, tiny_bert)
    done = call(tmp_path, "run", "plan.yaml", "--set", f"tasks.mood.search={json.dumps(SEARCH)}")
    assert done.returncode == 0, done.stderr
    assert "tuning was worth" in done.stdout
    assert "over default" in done.stdout and "the default recipe" in done.stdout
    ours = ("* ", "> ", "+ ", "  ", "= ")  # what Ray, Tune, MLflow and Alembic have to say is not for people
    assert [
        line for line in done.stderr.splitlines() if not line.startswith(ours) and "steps computed" not in line
    ] == []
    assert not [word for word in ("INFO", "WARNING", "Warning", "(pid=", "alembic") if word in done.stdout]


def test_a_run_that_nobody_knows_and_a_server_that_is_not_up(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    unknown = call(folder, "runs", "show", "nightly")
    assert unknown.returncode == 7
    assert "petl-ray runs ls" in unknown.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lonely = call(folder, "predict", "mood", "good", "--url", f"http://127.0.0.1:{port}")
    assert lonely.returncode == 75
    assert "petl-ray serve" in lonely.stderr
