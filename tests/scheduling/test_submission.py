"""Submitting to a cluster that somebody else started and that asks for a token; the ids, the luggage, the refusals."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from petl_ray.errors import PlanError, TemporaryError
from petl_ray.scheduling.luggage import digest_of, pack, travelling
from petl_ray.scheduling.submission import Cluster, submit
from tests.scheduling.head import Head, protected_head
from tests.tinyplan import call, command, surroundings, write_plan


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    pytest.importorskip("ray")
    with protected_head(tmp_path_factory.mktemp("head")) as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the tiny plan; no token is lying about for this user."""
    folder = tmp_path / "desk"
    write_plan(folder, tiny_bert)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


def test_only_what_a_run_opens_travels(folder: Path, tmp_path: Path) -> None:
    (folder / "secret.txt").write_text("not yours")
    files = travelling(Path("plan.yaml"), folder, (), (), None)
    base = sorted(path.relative_to(folder) for path in (folder / "base").iterdir())
    assert files == sorted([*base, Path("data/mood.jsonl"), Path("plan.yaml")])
    there = pack(files, folder, tmp_path / "there")
    assert not (there / "secret.txt").exists()
    assert (there / "data/mood.jsonl").read_bytes() == (folder / "data/mood.jsonl").read_bytes()


def test_the_id_follows_from_bytes_and_words_and_not_from_times(folder: Path) -> None:
    files = travelling(Path("plan.yaml"), folder, (), (), None)
    before = digest_of(files, folder, ["run"])
    (folder / "plan.yaml").touch()
    assert digest_of(files, folder, ["run"]) == before
    assert digest_of(files, folder, ["run", "--task", "mood"]) != before
    with (folder / "data/mood.jsonl").open("a") as rows:
        rows.write('{"text": "one more", "label": "glad"}\n')
    assert digest_of(files, folder, ["run"]) != before


def test_a_file_outside_the_working_directory_cannot_travel(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "data" / "mood.jsonl", tmp_path / "mood.jsonl")
    setting = f"tasks.mood.data.train={tmp_path}/mood.jsonl"
    with pytest.raises(PlanError, match="only files below the working directory"):
        travelling(Path("plan.yaml"), folder, (setting,), (), None)


@pytest.mark.parametrize("source", ["../base", "data/../../base", "../desk/base", "../nowhere"])
def test_a_base_that_is_named_by_a_way_out_of_the_working_directory_cannot_travel(
    folder: Path, tiny_bert: Path, source: str
) -> None:
    shutil.copytree(tiny_bert, folder.parent / "base")
    with pytest.raises(PlanError, match=f"base.source: {source}: lies outside {folder}.* Copy it below"):
        travelling(Path("plan.yaml"), folder, (f"base.source={source}",), (), None)


def test_the_shipped_completion_plan_is_refused_before_a_cluster_is_asked(
    monkeypatch: pytest.MonkeyPatch, stories_llama: Path
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(PlanError, match=r"base.source: ../shared/models/stories260K: lies outside"):
        submit(Cluster.at("http://127.0.0.1:9"), Path("configs/completion.yaml"))


def test_a_way_through_a_folder_and_back_leads_to_the_same_file_there(folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    setting = "tasks.mood.data.train=empty/../data/mood.jsonl"
    files = travelling(Path("plan.yaml"), folder, (setting,), (), None)
    there = pack(files, folder, tmp_path / "there")
    assert (there / "empty/../data/mood.jsonl").read_bytes() == (folder / "data/mood.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["desk", "there"]


def test_an_absolute_path_is_told_to_be_written_as_it_will_be_found_there(folder: Path) -> None:
    setting = f"tasks.mood.data.train={folder}/data/mood.jsonl"
    with pytest.raises(PlanError, match=r"tasks.mood.data.train: .* is absolute.* Write data/mood.jsonl"):
        travelling(Path("plan.yaml"), folder, (setting,), (), None)


def test_what_a_path_with_wildcards_finds_travels(folder: Path) -> None:
    files = travelling(Path("plan.yaml"), folder, ("tasks.mood.data.train=data/m[o]*.jsonl",), (), None)
    assert Path("data/mood.jsonl") in files
    with pytest.raises(PlanError, match=r"data/x.*no such file"):
        travelling(Path("plan.yaml"), folder, ("tasks.mood.data.train=data/x*",), (), None)


@pytest.mark.parametrize("address", ["localhost:8265", "ray://head:10001", "http://"])
def test_an_address_that_is_no_url_is_refused(address: str) -> None:
    with pytest.raises(PlanError, match="--address"):
        Cluster.at(address)


def test_another_machine_is_not_given_code_without_a_token(folder: Path) -> None:
    with pytest.raises(PlanError, match="without a token"):
        Cluster.at("http://head.example:8265")


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--token-file"):
        Cluster.at("http://127.0.0.1:8265", tmp_path / "absent")


def test_a_cluster_that_is_not_there_is_said_in_one_line(folder: Path) -> None:
    with pytest.raises(TemporaryError, match="no answer"):
        submit(Cluster.at("http://127.0.0.1:9"), Path("plan.yaml"))


def test_without_the_token_nothing_is_submitted(head: Head, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="asks for a token"):
        submit(Cluster.at(head.address), Path("plan.yaml"))
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    with pytest.raises(PlanError, match="refused this token"):
        submit(Cluster.at(head.address, wrong), Path("plan.yaml"))
    with Cluster.at(head.address, head.token).client() as client:
        assert client.list_jobs() == []


def test_a_submitted_plan_ends_like_a_local_run_and_twice_attaches(head: Head, folder: Path, tmp_path: Path) -> None:
    words = ("submit", "plan.yaml", "--address", head.address, "--token-file", str(head.token))
    first = call(folder, *words, HOME=str(tmp_path))
    assert first.returncode == 0, first.stderr + first.stdout
    assert "Submitted petl-ray-" in first.stderr
    assert "train mood/default" in first.stdout and "accuracy" in first.stdout
    again = call(folder, *words, HOME=str(tmp_path))
    assert again.returncode == 0
    assert "Attached to petl-ray-" in again.stderr
    assert "accuracy" in again.stdout
    assert "INFO" not in first.stderr + again.stderr
    assert (head.home / "journal.db").is_file(), "what the run keeps lies in the home there, not in the job's copy"


def test_a_plan_that_fails_there_hands_its_exit_code_back(head: Head, folder: Path, tmp_path: Path) -> None:
    (folder / "data/mood.jsonl").write_text('{"text": "no label here"}\n')
    words = ("submit", "plan.yaml", "--address", head.address, "--token-file", str(head.token))
    ended = call(folder, *words, HOME=str(tmp_path))
    assert "Submitted" in ended.stderr, ended.stderr
    local = call(folder, "run", "plan.yaml", "--cluster", "none")
    assert ended.returncode == local.returncode != 0, ended.stdout
    retried = call(folder, *words, "--detach", HOME=str(tmp_path))
    assert "-2 on http" in retried.stderr, "a failed job is followed by a new attempt, not attached to"


@pytest.mark.long
def test_a_job_that_was_stopped_is_resumed_by_the_same_command(head: Head, folder: Path, tmp_path: Path) -> None:
    where = ("--address", head.address, "--token-file", str(head.token))
    words = ("submit", "plan.yaml", *where, "--set", "tasks.mood.training.epochs=1000")  # more than the test waits for
    with subprocess.Popen(
        command(*words), cwd=folder, env=surroundings(HOME=str(tmp_path)), stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        for line in following.stdout:
            if "train mood/head_only" in line and line.startswith("+"):
                break
        with Cluster.at(head.address, head.token).client() as client:
            (job,) = [one for one in client.list_jobs() if one.submission_id and one.status == "RUNNING"]
            client.stop_job(job.submission_id)
        following.communicate(timeout=60)
    assert following.returncode == 130
    resumed = call(folder, *words, "--detach", HOME=str(tmp_path))
    assert f"{job.submission_id}-2" in resumed.stderr
    cluster = Cluster.at(head.address, head.token)
    deadline = time.monotonic() + 90
    with cluster.client() as client:
        said = ""
        while "resumes" not in said and time.monotonic() < deadline:
            said = client.get_job_logs(f"{job.submission_id}-2")
            time.sleep(1)
        client.stop_job(f"{job.submission_id}-2")
    assert "resumes" in said
