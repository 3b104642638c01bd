"""A driver killed at one point after the other, each time started again with the same command: nothing is redone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from petl_ray.orchestration import Home
from tests.chaos.conftest import Site
from tests.chaos.driving import KILLED, Drivers, free_port, until
from tests.chaos.plans import write_plan
from tests.chaos.reading import (
    assert_finished_like,
    assert_nothing_lost_or_redone,
    checkpointed_steps,
    is_quiet,
    kept,
    states,
    the_run,
    validated_steps,
)

# One point of every step kind, in the order a run comes by: between outputs and record, between a rung and its
# decision, inside a checkpoint, between record and journal row, between an effect and its record.
TELLING = (
    "prepare:after-manifest",
    "search:after-rung:13",
    "train:mid-progress:9",
    "evaluate:after-record",
    "register:before-manifest",
    "promote:before-manifest",
)
VERBS = ("prepare", "search", "train", "evaluate", "register", "promote")
AROUND = ("claimed", "before-manifest", "after-record")  # no verb is past its record before the last of them
BETWEEN = ("after-manifest", "after-journal")
WITHIN = {
    "search": ("in-rung:7", "mid-progress:1", "after-progress:2", "after-rung:2", "in-rung:2"),
    "train": ("mid-progress:9", "after-progress:5"),
}


def chain(drivers: Drivers, site: Site, home: Home, faults: tuple[str, ...]) -> None:
    """Run, killed at each of `faults` in turn, then to the end; asserts after each start that nothing was redone."""
    before = kept(home)
    for fault in faults:
        driver = drivers.run(site.plan, home.path, site.in_process, fault)
        assert driver.process.returncode == KILLED, f"{fault} was not passed: {driver.said}"
        assert the_run(home)["state"] == "RESUMABLE"
        assert_nothing_lost_or_redone(home, before)
        before = kept(home)
    driver = drivers.run(site.plan, home.path, site.in_process)
    assert driver.process.returncode == 0, driver.said
    assert_nothing_lost_or_redone(home, before)


def test_a_run_killed_in_every_kind_of_step_ends_like_an_undisturbed_one_and_redoes_nothing(
    joining: Drivers, site: Site, home: Home, undisturbed: dict[str, str]
) -> None:
    chain(joining, site, home, TELLING)
    assert_finished_like(home, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("points", [AROUND, BETWEEN], ids=["around", "between"])
def test_a_run_killed_at_every_point_of_every_step_redoes_nothing(
    joining: Drivers, site: Site, home: Home, undisturbed: dict[str, str], points: tuple[str, ...]
) -> None:
    inside = WITHIN if points is AROUND else {}
    faults = [f"{verb}:{point}" for verb in VERBS for point in (points[0], *inside.get(verb, ()), *points[1:])]
    chain(joining, site, home, tuple(faults))
    assert_finished_like(home, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("point", ["mid-progress:21", "after-progress:21"])
def test_trainings_killed_mid_checkpoint_go_on_from_the_newest_whole_ones(
    joining: Drivers, site: Site, home: Home, undisturbed: dict[str, str], point: str
) -> None:
    killed = joining.run(site.plan, home.path, site.in_process, f"train:{point}")
    assert killed.process.returncode == KILLED, killed.said
    reached = checkpointed_steps(home)  # side by side, one save a step: the twenty-first is one of several trainings'
    assert sum(reached.values()) == (20 if point.startswith("mid") else 21)
    before = kept(home)
    driver = joining.run(site.plan, home.path, site.in_process)
    assert driver.process.returncode == 0, driver.said
    for name, step in reached.items():
        again = validated_steps(home, name, before.newest_event)
        assert again and min(again) >= step, "it began again at the start"
    assert_nothing_lost_or_redone(home, before)
    assert_finished_like(home, undisturbed)


@pytest.mark.long
def test_a_driver_killed_on_its_own_ray_at_any_moment_redoes_nothing(
    drivers: Drivers, site: Site, home: Home, undisturbed: dict[str, str]
) -> None:
    moments: dict[str, Callable[[], bool]] = {
        "a step of data is claimed": lambda: bool(states(home, "prepare")),
        "the first rung is recorded": lambda: bool(kept(home).rungs),
        "half of the rungs are recorded": lambda: len(kept(home).rungs) >= 8,
        "a training has saved a checkpoint": lambda: bool(checkpointed_steps(home)),
        "a report is asked for": lambda: bool(states(home, "evaluate")),
        "a version is being registered": lambda: bool(states(home, "register")),
    }
    before = None
    for happened in moments.values():
        driver = drivers.start(site.plan, home.path, site.on_ray)
        driver.until(lambda happened=happened: (home.path / "journal.db").exists() and happened())  # type: ignore[misc]
        driver.kill()
        until(lambda: is_quiet(home))
        if before is not None:
            assert_nothing_lost_or_redone(home, before)
        before = kept(home)
    assert before is not None
    driver = drivers.run(site.plan, home.path, site.on_ray)
    assert driver.process.returncode == 0, driver.said
    assert_nothing_lost_or_redone(home, before)
    assert_finished_like(home, undisturbed)


@pytest.mark.long
def test_a_driver_killed_while_it_deploys_deploys_the_same_releases(
    drivers: Drivers, site: Site, home: Home, undisturbed: dict[str, str]
) -> None:
    serving = f"{{port: {free_port()}}}"
    plan = write_plan(site.directory, site.base, "served", serving)
    before = kept(home)
    for fault in ("deploy:claimed", "deploy:before-manifest", "deploy:after-record"):
        killed = drivers.run(plan, home.path, site.on_ray, fault)
        assert killed.process.returncode == KILLED, killed.said
        assert_nothing_lost_or_redone(home, before)
        before = kept(home)
        assert set(before.promotions) == {1, 2}
    driver = drivers.run(plan, home.path, site.on_ray)
    assert driver.process.returncode == 0, driver.said
    assert sorted(states(home, "deploy")) == ["CANCELLED", "CANCELLED", "CANCELLED", "SUCCEEDED"]
    assert '"provenance"' in driver.said[driver.said.index('"samples"') :], "nothing answered"
    assert_nothing_lost_or_redone(home, before)
    assert_finished_like(home, undisturbed)
