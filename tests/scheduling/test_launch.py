"""What a launch asks of the placement before it begins: `precision: auto` means what it means on the machines that train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petl_ray.bank.memory import Machine
from petl_ray.errors import AdapterError, CapacityError, PlanError
from petl_ray.models import choose_precision
from petl_ray.models import device as device_module
from petl_ray.orchestration import Home, Placement, Run, runs
from petl_ray.orchestration.placement import VerbResources
from petl_ray.plan import LockedPlan, Plan, read_plan
from petl_ray.registry import adapters
from petl_ray.scheduling import launch as launching
from petl_ray.scheduling.launch import launch, lock_at, precision_at, rehearsal, resume
from pipelines.summary import Summary
from tests.tinyplan import SEARCH, write_plan

CLUSTER = Placement(name="there", ray="auto", cpus=2)
HERE = Placement(name="here", ray="none", cpus=1)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


@pytest.fixture
def plan(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return read_plan(write_plan(tmp_path, tiny_bert))


@pytest.fixture
def other_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """This process takes its CPU for one of the other kind; what `auto` means on the machine itself, and to this process."""
    there = choose_precision("cpu")
    flags = "fpu avx2" if there == "bf16" else "fpu avx512_bf16"
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(device_module, "CPU_FACTS", tmp_path / "cpuinfo")
    here = choose_precision("cpu")
    assert here != there
    return there, here


def precision(locked: LockedPlan) -> str:
    return locked.tasks["mood"].training.base.precision


def test_auto_precision_is_what_the_workers_of_a_cluster_say_and_here_what_this_machine_says(
    plan: Plan, home: Home, other_cpu: tuple[str, str], ray_cluster: str
) -> None:
    there, here = other_cpu
    assert precision(lock_at(plan, home, CLUSTER)) == there
    assert precision(lock_at(plan, home, HERE)) == here
    assert precision(lock_at(plan, home, Placement(ray="local"))) == here


def test_the_digest_is_that_of_a_plan_that_writes_the_value(
    plan: Plan, home: Home, other_cpu: tuple[str, str], ray_cluster: str
) -> None:
    there, here = other_cpu

    def written(value: str) -> str:
        base = plan.base.model_copy(update={"precision": value})
        return lock_at(plan.model_copy(update={"base": base}), home, HERE).digest

    assert lock_at(plan, home, CLUSTER).digest == written(there) != written(here)


def test_a_rehearsal_asks_the_question_that_the_run_will_ask(
    plan: Plan, home: Home, other_cpu: tuple[str, str], ray_cluster: str
) -> None:
    there, here = other_cpu
    for placement, meant in ((CLUSTER, there), (HERE, here)):
        asked: list[Any] = [step.spec for step in rehearsal(plan, home, placement) if step.verb == "train"]
        assert {spec.base.precision for spec in asked} == {meant}


def test_machines_that_do_not_agree_are_not_chosen_among(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "ask", lambda placement, verb, question: ["fp32", "bf16", "fp32"])
    with pytest.raises(PlanError) as caught:
        precision_at(CLUSTER)
    assert str(caught.value) == (
        "base.precision: got auto; on the machines of placement there that can train it means bf16 and fp32. "
        "Write one of them."
    )


def test_a_cluster_without_the_gpus_that_training_is_given_is_refused_before_a_run_begins(
    plan: Plan, home: Home, ray_cluster: str
) -> None:
    greedy = CLUSTER.model_copy(update={"verbs": {"train": VerbResources(gpus=1)}})
    with pytest.raises(CapacityError, match="asks for 1 cpus and 1 gpus on one machine"):
        launch(plan, home, greedy)
    assert runs.ls(home) == []


@pytest.mark.parametrize(
    ("setting", "bytes_", "told"),
    [
        (
            "tasks.mood.training.method.layers=[7]",
            1e10,
            "train mood/default: method.layers: got 7; this model has 2 layers",
        ),
        ("tasks.mood.training.epochs=1", 1e5, "train mood/default: memory: one slot of"),
    ],
)
def test_what_cannot_train_is_refused_before_a_run_begins_and_what_is_found_is_not_asked_again(
    tmp_path: Path, tiny_bert: Path, home: Home, monkeypatch: pytest.MonkeyPatch, setting: str, bytes_: float, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_plan(tmp_path, tiny_bert)
    monkeypatch.setattr("petl_ray.bank.memory.machine_here", lambda: Machine("cpu", bytes_))
    with pytest.raises((CapacityError, AdapterError)) as caught:
        launch(read_plan(path, [setting]), home, HERE)
    assert str(caught.value).startswith(told)
    assert runs.ls(home) == []
    monkeypatch.setattr("petl_ray.bank.memory.machine_here", lambda: Machine("cpu", 1e10))
    launch(read_plan(path), home, HERE)
    monkeypatch.setattr("petl_ray.bank.memory.machine_here", lambda: Machine("cpu", 1e5))
    assert launch(read_plan(path), home, HERE).failures == {}


def test_what_is_taken_for_the_moment_and_small_machines_beside_large_ones_refuse_nothing(
    tmp_path: Path, tiny_bert: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be held by this very run, whose driver was killed, or by another that is at the same step."""
    monkeypatch.chdir(tmp_path)
    locked = lock_at(read_plan(write_plan(tmp_path, tiny_bert)), home, HERE)
    for there in ([Machine("cpu", 1e10, 10.0)], [Machine("cpu", 1e5), Machine("cpu", 1e10)]):
        monkeypatch.setattr(launching, "ask", lambda placement, verb, question, there=there: there)
        launching.refuse_what_cannot_train(locked, home, HERE)
    monkeypatch.setattr(launching, "ask", lambda placement, verb, question: [Machine("cpu", 1e5), Machine("cpu", 2e5)])
    with pytest.raises(CapacityError):
        launching.refuse_what_cannot_train(locked, home, HERE)


def test_a_plan_that_writes_its_precision_asks_nobody_and_a_resumed_run_keeps_its_own(
    plan: Plan, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    walked: list[str] = []

    def answer(placement: Placement, verb: str, question: str) -> list[str]:
        asked.append(verb)
        return ["fp16"]

    def stopped(run: Run, locked: LockedPlan) -> Summary:
        walked.append(precision(locked))
        raise KeyboardInterrupt

    def stops(name: str) -> Callable[[Run, LockedPlan], Summary]:
        return stopped

    monkeypatch.setattr(launching, "ask", answer)
    monkeypatch.setattr(launching, "pipeline", stops)
    monkeypatch.setattr(launching, "refuse_what_cannot_train", lambda locked, home, placement: None)
    with pytest.raises(KeyboardInterrupt):
        launch(plan, home, CLUSTER.model_copy(update={"ray": "none"}), run_id="nightly")
    assert (asked, walked) == (["train"], ["fp16"])
    stored = runs.resume_info(home, "nightly")["locked"]
    with pytest.raises(KeyboardInterrupt):
        resume(stored, "nightly", home, HERE)
    written = plan.model_copy(update={"base": plan.base.model_copy(update={"precision": "fp32"})})
    with pytest.raises(KeyboardInterrupt):
        launch(written, home, HERE)
    assert (asked, walked) == (["train"], ["fp16", "fp16", "fp32"])


def test_whoever_asks_why_learns_the_run_the_plan_and_the_trial_of_a_version(
    tmp_path: Path, tiny_bert: Path, home: Home, monkeypatch: pytest.MonkeyPatch, ray_cluster: str
) -> None:
    monkeypatch.chdir(tmp_path)
    searching = [f"tasks.mood.search={json.dumps(SEARCH)}"]
    plan = read_plan(write_plan(tmp_path, tiny_bert), searching)
    launch(plan, home, CLUSTER, run_id="nightly")
    run = runs.show(home, "nightly")
    (row,) = adapters.why(home.database_url, "mood", 1)
    outcome = {step["verb"]: step["outcome_digest"] for step in run["steps"] if not step["label"].startswith("train")}
    lineage = row["lineage"]
    assert (lineage["run"], lineage["plan"]) == ("nightly", run["plan_digest"])
    assert lineage["plan"] == lock_at(plan, home, CLUSTER).digest
    assert lineage["dataset"] == outcome["prepare"]
    assert lineage["trial"] == outcome["search"]
    assert lineage["report"] == outcome["evaluate"]
    assert lineage["base"] == lock_at(plan, home, CLUSTER).tasks["mood"].training.base.pinned.digest
    assert set(json.loads(lineage["overrides"])) <= set(SEARCH["space"])
