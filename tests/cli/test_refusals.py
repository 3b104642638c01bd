"""What a user meets when something is wrong: one clear line, a code that says its kind, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from petl_ray.orchestration.home import Home, opened
from tests.cli.conftest import Ask, Said
from tests.tinyplan import call, command, surroundings, write_plan

RUN = ("run", "plan.yaml", "--cluster", "none")


def refused(said: Said, code: int, *parts: str) -> None:
    """One message that names what, and no traceback."""
    assert said.code == code, said.err
    text = said.err + said.out
    assert "Traceback" not in text
    lines = [line for line in said.err.splitlines() if parts[0] in line]
    assert lines, said.err
    for part in parts:
        assert part in lines[0], lines[0]


def nothing_was_recorded(folder: Path) -> None:
    """No outcome of any step is visible, and nothing waits half-written in the store."""
    store = folder / ".petl-ray" / "store"
    assert not [path for path in store.rglob("*") if path.is_file() and "records" in path.parts]
    assert not [path for path in store.rglob("*") if path.is_file() and path.name.endswith((".part", ".tmp"))]


def change(folder: Path, path: str, value: object) -> None:
    document = yaml.safe_load((folder / "plan.yaml").read_text())
    *parents, last = path.split(".")
    place = document
    for key in parents:
        place = place[key]
    place[last] = value
    (folder / "plan.yaml").write_text(yaml.safe_dump(document))


def test_a_plan_that_is_not_there(work: Path, asked: Ask) -> None:
    refused(asked("run", "plam.yaml"), 2, "plam.yaml", "no such file", "Did you mean plan.yaml?")
    assert not (work / ".petl-ray").exists()


def test_a_key_that_nobody_knows(work: Path, asked: Ask) -> None:
    change(work, "tasks.mood.training.lerning_rate", 0.1)
    refused(asked(*RUN), 2, "tasks.mood.training.lerning_rate", "learning_rate")
    assert not (work / ".petl-ray").exists()


def test_a_value_that_cannot_be(work: Path, asked: Ask) -> None:
    refused(asked(*RUN, "--set", "tasks.mood.training.method.rank=0"), 2, "tasks.mood.training.method", "rank", "0")
    assert not (work / ".petl-ray").exists()


def test_a_task_that_the_plan_does_not_have(work: Path, asked: Ask) -> None:
    refused(asked(*RUN, "--task", "moods"), 2, "--task moods", "Did you mean mood?")


def test_an_option_that_nobody_knows(work: Path, asked: Ask) -> None:
    said = asked("run", "plan.yaml", "--clutser", "none")
    assert said.code == 2
    assert "--clutser" in said.err and "--cluster" in said.err


def test_a_data_file_that_is_missing(work: Path, asked: Ask) -> None:
    (work / "data" / "mood.jsonl").unlink()
    refused(asked(*RUN), 3, "mood.jsonl", "no such file")
    nothing_was_recorded(work)


def test_a_row_that_is_malformed(work: Path, asked: Ask) -> None:
    with (work / "data" / "mood.jsonl").open("a") as rows:
        rows.write('{"text": "cut off", "lab\n')
    refused(asked(*RUN), 3, "mood.jsonl", "41")
    nothing_was_recorded(work)


def test_a_row_without_its_label(work: Path, asked: Ask) -> None:
    with (work / "data" / "mood.jsonl").open("a") as rows:
        rows.write('{"text": "nobody said what this is"}\n')
    refused(asked(*RUN), 3, "mood.jsonl", "41", "label")
    nothing_was_recorded(work)


def test_a_base_that_nobody_knows(work: Path, asked: Ask) -> None:
    refused(asked(*RUN, "--set", "base.source=package:no_such_base"), 4, "no_such_base")
    refused(asked(*RUN, "--set", "base.source=elsewhere/base"), 4, "elsewhere/base")
    nothing_was_recorded(work)


def test_a_label_that_training_never_saw(work: Path, asked: Ask) -> None:
    odd = [{"text": "a label of its own", "label": "puzzled"}, {"text": "good thanks", "label": "glad"}]
    (work / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    change(work, "tasks.mood.data", {"train": "data/mood.jsonl", "test": "data/test.jsonl"})
    refused(asked(*RUN), 3, "puzzled", "test.jsonl")
    nothing_was_recorded(work)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


def test_a_port_that_somebody_holds(done: Path, asked: Ask, taken_port: int) -> None:
    refused(asked("serve", "--port", str(taken_port)), 8, str(taken_port))


def test_a_run_whose_port_is_held_says_so_before_it_computes(work: Path, asked: Ask, taken_port: int) -> None:
    refused(asked("run", "plan.yaml", "--set", f"serving={{port: {taken_port}}}"), 8, str(taken_port))
    nothing_was_recorded(work)


@pytest.mark.parametrize("where", ["file/home", "/proc/home"])
def test_a_home_that_cannot_be_written(work: Path, asked: Ask, where: str) -> None:
    (work / "file").write_text("in the way")
    said = asked(*RUN, "--home", where)
    refused(said, 1, "home", "Set PETL_RAY_HOME")


@pytest.mark.skipif(os.geteuid() != 0, reason="a user who may write anywhere is needed to become one who may not")
def test_a_store_that_this_user_may_not_write(work: Path) -> None:
    assert call(work, "runs", "ls").returncode == 0
    (work / ".petl-ray" / "store").mkdir(exist_ok=True)
    for path in (work, *work.parents):
        if path != Path("/") and path.stat().st_uid == 0:
            path.chmod(path.stat().st_mode | 0o055)
    said = _as_nobody(work, *RUN)
    refused(said, 1, "PETL_RAY_HOME")


def _as_nobody(folder: Path, *words: str) -> Said:
    def step_down() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    ended = subprocess.run(
        command(*words), cwd=folder, env=surroundings(HOME="/nonexistent", PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True, text=True, timeout=120, preexec_fn=step_down,
    )  # fmt: skip
    return Said(ended.returncode, ended.stdout, ended.stderr)


def test_a_disk_that_fills_up_while_a_step_is_kept(work: Path) -> None:
    tiny = 16_384  # bytes that one file may have: rows fit, weights do not
    journal = opened(Home.at(work / ".petl-ray"))  # its tables stand before the disk is full
    journal.database.begin
    said = _with_files_up_to(tiny, work, *RUN)
    assert said.code != 0
    assert "Traceback" not in said.err + said.out


def _with_files_up_to(limit_bytes: int, folder: Path, *words: str) -> Said:
    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    ended = subprocess.run(
        command(*words), cwd=folder, env=surroundings(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True, text=True, timeout=120, preexec_fn=bound,
    )  # fmt: skip
    return Said(ended.returncode, ended.stdout, ended.stderr)
