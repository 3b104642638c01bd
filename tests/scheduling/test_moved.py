"""A run that was left behind is taken up after its project was moved: the same bytes lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from petl_ray.artifact import Adapter
from petl_ray.errors import CapacityError, PlanError
from petl_ray.orchestration import Home, Placement, Run, runs
from petl_ray.orchestration.placement import VerbResources
from petl_ray.plan import LockedPlan, read_plan
from petl_ray.scheduling import launch as launching
from petl_ray.scheduling.launch import launch, resume
from petl_ray.spec import Pinned
from pipelines.summary import Summary
from tests.tinyplan import write_plan

HERE = Placement(ray="none", cpus=2)


@pytest.mark.parametrize("left_before", ["prepare", "train", "evaluate"])
def test_a_run_is_carried_on_where_its_data_and_its_base_lie_today(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, left_before: str
) -> None:
    home = Home.at(tmp_path / "home")
    write_plan(tmp_path / "before", tiny_bert)
    monkeypatch.chdir(tmp_path / "before")
    too_small = HERE.model_copy(update={"verbs": {left_before: VerbResources(cpus=64)}})
    with suppress(CapacityError):  # of a pack
        launch(read_plan(Path("plan.yaml")), home, too_small, run_id="moved")
    assert runs.show(home, "moved")["state"] == "FAILED"
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path / "after")
    summary = launch(read_plan(Path("plan.yaml")), home, HERE, run_id="moved")
    assert summary.failures == {}
    assert [task.task for task in summary.tasks] == ["mood"]


def champion(digest: str) -> Adapter:
    base = Pinned(uri="elsewhere", digest="b" * 64)
    return Adapter(
        task="mood", task_type="classification", labels=("glad", "sorry"), method=digest, base=base, precision="fp32",
        trained_parameters=1, base_parameters=2,
    )  # fmt: skip


def test_a_run_that_is_taken_up_keeps_the_champions_of_its_first_day(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, home = read_plan(write_plan(tmp_path, tiny_bert)), Home.at(tmp_path / "home")
    today = iter("abc")
    walked: list[str | None] = []

    def locks(*args: object) -> LockedPlan:
        return lock_with(next(today))

    def lock_with(name: str) -> LockedPlan:
        locked = launching.lock(plan)
        tasks = {key: task.model_copy(update={"champion": champion(name)}) for key, task in locked.tasks.items()}
        return locked.model_copy(update={"tasks": tasks})

    def stopped(run: Run, locked: LockedPlan) -> Summary:
        standing = locked.tasks["mood"].champion
        walked.append(standing.method if standing else None)
        raise KeyboardInterrupt

    def stops(name: str) -> Callable[[Run, LockedPlan], Summary]:
        return stopped

    monkeypatch.setattr(launching, "lock_at", locks)
    monkeypatch.setattr(launching, "refuse_what_cannot_train", lambda locked, home, placement: None)
    monkeypatch.setattr(launching, "pipeline", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            launch(plan, home, HERE, run_id="nightly")
    with pytest.raises(KeyboardInterrupt):
        resume(runs.resume_info(home, "nightly")["locked"], "nightly", home, HERE)
    assert walked == ["a", "a", "a"]


def test_what_could_not_be_served_in_this_process_is_refused_before_anything_is_paid(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, home = read_plan(write_plan(tmp_path, tiny_bert, serving={})), Home.at(tmp_path / "home")
    with pytest.raises(PlanError, match=r"serving: .* runs every step in this process.* --cluster local"):
        launch(plan, home, HERE)
    assert runs.ls(home) == []
