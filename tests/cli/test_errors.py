"""What goes wrong is one clear message and an exit code of its own; nothing half-written is left behind."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from tests.tinyplan import call, write_plan

RUN = ("run", "plan.yaml", "--cluster", "none")


@pytest.fixture
def folder(tmp_path: Path, tiny_bert: Path) -> Path:
    write_plan(tmp_path, tiny_bert)
    return tmp_path


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr + done.stdout, done.stderr


def outcomes(folder: Path) -> list[Path]:
    return list((folder / ".petl-ray").rglob("record.json"))


def test_a_missing_data_file(folder: Path) -> None:
    done = call(folder, *RUN, "--set", "tasks.mood.data.train=data/moods.jsonl")
    refused(done, 3, "data/moods.jsonl", "mood.jsonl")
    assert outcomes(folder) == []


def test_a_malformed_row_is_named_by_its_number(folder: Path) -> None:
    with (folder / "data/mood.jsonl").open("a") as rows:
        rows.write('{"text": "half a row\n')
    done = call(folder, *RUN)
    refused(done, 1, "row 41", "mood.jsonl")
    assert outcomes(folder) == []


def test_an_unknown_key(folder: Path) -> None:
    refused(call(folder, *RUN, "--set", "tasks.mood.training.epoks=2"), 2, "training.epoks", "Did you mean epochs?")


def test_an_unknown_base(folder: Path) -> None:
    refused(call(folder, *RUN, "--set", "base.source=bases"), 4, "base")


def test_a_label_that_training_never_saw(folder: Path) -> None:
    rows = [{"text": "the order is puzzling", "label": "puzzled"}, {"text": "good love", "label": "glad"}]
    (folder / "data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(call(folder, *RUN, "--set", "tasks.mood.data.test=data/test.jsonl"), 1, "puzzled")
    assert outcomes(folder) == []


def test_a_port_that_somebody_holds(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(call(folder, "serve", "--port", port), 8, port)


def test_a_home_that_cannot_be_written(folder: Path) -> None:
    refused(call(folder, *RUN, "--home", "/proc/petl-ray"), 1, "/proc/petl-ray")


def test_nothing_to_serve_and_nobody_to_ask(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(call(folder, "predict", "mood", "good", "--url", f"http://127.0.0.1:{port}"), 75, "petl-ray serve")


def test_a_run_that_nobody_knows(folder: Path) -> None:
    refused(call(folder, "runs", "show", "nightly"), 7, "nightly", "petl-ray runs ls")
