"""What a user meets when something is wrong: one clear line, a code that says its kind, and nothing half-written."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from petl_ray.bank.memory import Machine
from petl_ray.scheduling import launch
from tests.cli.conftest import Ask, Said

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
    assert not list((folder / ".petl-ray").rglob("record.json"))
    assert not [path for path in (folder / ".petl-ray").rglob(".tmp/*") if path.is_file()]


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


def test_a_layer_that_the_base_does_not_have(work: Path, asked: Ask) -> None:
    beyond = ("--set", "tasks.mood.training.method.layers=[9]")
    refused(asked("validate", "plan.yaml", *beyond), 4, "tasks.mood: method.layers: got 9", "Choose 0 to 1")
    refused(asked("plan", "plan.yaml", *beyond), 4, "mood/default: method.layers: got 9", "Choose 0 to 1")
    refused(asked(*RUN, *beyond), 4, "mood/default: method.layers: got 9", "Choose 0 to 1")
    nothing_was_recorded(work)


def test_a_task_that_the_plan_does_not_have(work: Path, asked: Ask) -> None:
    refused(asked(*RUN, "--task", "moods"), 2, "--task moods", "Did you mean mood?")


def test_an_option_that_nobody_knows(work: Path, asked: Ask) -> None:
    said = asked("run", "plan.yaml", "--clutser", "none")
    assert said.code == 2
    assert "--clutser" in said.err and "--cluster" in said.err


@pytest.mark.parametrize("words", [("validate", "plan.yaml"), ("runs", "show", "nightly"), RUN])
def test_an_error_is_json_too_where_json_is_asked(work: Path, asked: Ask, words: tuple[str, ...]) -> None:
    (work / "plan.yaml").write_text("version: 1\nname: [")
    said = asked(*words, "--json")
    error = said.json["error"]
    assert said.code == error["exit_code"] != 0
    assert error["kind"] in ("PlanError", "NotFoundError") and error["what"] and error["found"]
    assert error["message"] == said.err.strip()


def test_a_cluster_that_is_neither_a_short_name_nor_a_file(work: Path, asked: Ask) -> None:
    (work / "cluster").mkdir()
    (work / "cluster" / "big.yaml").touch()
    names = "Choose auto, local, none, or a YAML file: cluster/big.yaml."
    refused(asked("plan", "plan.yaml", "--cluster", "foo"), 2, "--cluster foo", names)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_plan_goes_on_past_what_memory_cannot_hold(
    work: Path, asked: Ask, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is listed, those that do not fit with the figures; the exit code says that there are some."""
    monkeypatch.setattr("petl_ray.bank.memory.machine_here", lambda: Machine("cpu", 1e5, 1e5))
    said = asked("plan", "plan.yaml", "--cluster", "none", *(("--json",) if as_json else ()))
    refused(said, 5, "train mood/default: memory: one slot of", "for one row at a time", "Lower max_length or packs")
    if as_json:
        rows = {row["step"]: row for row in said.json}
        misfit = rows["train mood/default"]
        assert "one slot of" in misfit["why"] and misfit["status"] != "hit" and misfit["packing"] is None
        assert rows["prepare mood"]["why"] and "one slot" not in rows["prepare mood"]["why"]
    else:
        assert "prepare mood" in said.out and "one slot of" in said.out


@pytest.mark.parametrize("given", ["--file", "-"])
def test_a_blank_line_among_the_texts(work: Path, asked: Ask, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = "good day\n\nbad day\n"
    (work / "texts").write_text(texts)
    monkeypatch.setattr(sys, "stdin", io.StringIO(texts))
    name, told = ("-", "standard input line 2") if given == "-" else ("texts", "texts line 2")
    refused(asked("predict", "mood", "--file", name), 3, told, "is blank")


def test_a_data_file_that_is_missing(work: Path, asked: Ask) -> None:
    (work / "data" / "mood.jsonl").unlink()
    refused(asked(*RUN), 3, "mood.jsonl", "no file", "That folder is empty")
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
    refused(asked(*RUN, "--set", "base.source=elsewhere/base"), 4, "elsewhere/base", "--set base.source=DIR")
    nothing_was_recorded(work)


def test_a_label_that_training_never_saw(work: Path, asked: Ask) -> None:
    odd = [{"text": "a label of its own", "label": "puzzled"}, {"text": "good thanks", "label": "glad"}]
    (work / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    change(work, "tasks.mood.data", {"train": "data/mood.jsonl", "test": "data/test.jsonl"})
    refused(asked(*RUN), 3, "puzzled", "no training row has it", "Add training rows")
    nothing_was_recorded(work)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


def test_a_port_that_somebody_holds(work: Path, asked: Ask, taken_port: int) -> None:
    refused(asked("serve", "--port", str(taken_port)), 8, str(taken_port))


def test_a_run_whose_port_is_held_says_so_before_it_computes(
    work: Path, asked: Ask, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PORT_PATIENCE_S", 0.0)
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # the cluster of these tests could hold the port rightly
    refused(asked("run", "plan.yaml", "--set", f"serving={{port: {taken_port}}}"), 8, str(taken_port))
    nothing_was_recorded(work)


@pytest.mark.parametrize("where", ["file/home", "/proc/home"])
def test_a_home_that_cannot_be_written(work: Path, asked: Ask, where: str) -> None:
    (work / "file").write_text("in the way")
    said = asked(*RUN, "--home", where)
    refused(said, 1, where, "Choose another directory")


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own at `folder`; skips where this user may not mount one."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_store_that_cannot_be_written(work: Path, asked: Ask) -> None:
    with disk(work / "home" / "store", "ro,size=300k"):
        refused(asked(*RUN, "--home", "home"), 1, "store", "read-only file system", "Choose a directory")


@pytest.mark.parametrize("size_kb", [150, 330, 420, 600, 900])
def test_a_disk_that_fills_up(work: Path, asked: Ask, size_kb: int) -> None:
    """Full at the journal's first table, while a step runs, and while it is kept: what stands afterwards is whole."""
    with disk(work / "home", f"size={size_kb}k") as home:
        refused(asked(*RUN, "--home", "home"), 5, "disk is full", "Free space")
        stands = {path.parent.name: json.loads(path.read_bytes()) for path in home.rglob("record.json")}
        shutil.copytree(home, work / "bigger", ignore=shutil.ignore_patterns("journal.db*", "mlflow.db*"))
    again = asked(*RUN, "--home", "bigger", "--json")
    assert again.code == 0, again.err
    assert again.json["steps"]["hit"] == len([name for name in stands if name])
    for name, record in stands.items():
        assert json.loads((work / "bigger" / "store" / "steps" / name / "record.json").read_bytes()) == record
