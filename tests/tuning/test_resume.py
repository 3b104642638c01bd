"""A population without Ray, killed at every one of its durable writes: what is resumed ends as what was not disturbed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Dataset, Trial
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.ledger import read_files, write_files
from petl_ray.verb import Question
from tests.plainstep import PlainStep
from tests.tuning.fake_training.asking import ask, rows
from tests.tuning.fake_training.session import MiniSession

SPEC = ask(scheduler="pbt", quantile=0.5, algorithm="random", trials=6, rungs=(0.25, 0.5, 0.75, 1.0))


class Killed(BaseException):
    """As a SIGKILL: nothing catches it."""


class Dying(PlainStep):
    """A step whose process ends before its n-th durable write, counted from now on; what it writes is whole."""

    left = 1 << 30

    def record(self, key: str, value: Mapping[str, Any]) -> None:
        self._count()
        super().record(key, value)

    def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
        self._count()
        super().save_progress(directory, note)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def ride(step: PlainStep, dataset: Dataset, scratch: Path) -> tuple[Trial, list[tuple[int, int]]]:
    """The whole search in this process; its outcome, and which rungs were trained, in their order."""
    hunt, session, trained = Hunt("q0", Question("mini", SPEC, (dataset,)), step), MiniSession(1), []
    data = scratch / "data"
    write_files(data, hunt.rows())
    while not hunt.over:
        one = hunt.race.ready()[0]
        order, rung = hunt.order(one), one.rung
        hunt.started(one)
        facts, files = hunt.ledger.rungs(one.number).get(rung), None
        if facts is None:
            trained.append((one.number, rung))
            checkpoint = hunt.ledger.checkpoint(one.number) if rung else None
            if checkpoint is not None:
                write_files(scratch / "from", checkpoint[1])
            session.admit(order.key, order.spec(), data, scratch / "from" if checkpoint else None)
            session.aim(order.key, order.target)
            facts = session.turn().arrived[order.key]
            home = scratch / order.key / str(rung)
            home.mkdir(parents=True)
            session.save(order.key, home)
            session.drop(order.key)
            files = read_files(home) if order.target < 1.0 else None
        hunt.heard(one, facts, files, None)
    found = hunt.outcome()
    assert isinstance(found, Trial)
    return found, trained


def test_a_population_killed_at_any_write_resumes_to_the_same_digest(tmp_path: Path) -> None:
    whole = Dying(tmp_path / "whole")
    undisturbed, all_rungs = ride(whole, rows(whole), tmp_path / "scratch")
    writes = (1 << 30) - whole.left
    assert len(all_rungs) == 24 and writes > 24 + 18
    for at in range(writes):
        root = tmp_path / f"killed-{at}"
        dying = Dying(root)
        dataset = rows(dying)
        dying.left = at
        with pytest.raises(Killed):
            ride(dying, dataset, root / "first")
        survivor = PlainStep(root)
        recorded = {key for key in survivor.recorded() if "/" in key}
        resumed, trained = ride(survivor, dataset, root / "second")
        assert resumed.digest == undisturbed.digest, at
        assert not recorded & {f"{number}/{rung}" for number, rung in trained}
        told = [facts["recorded"] for event, facts in survivor.events if event == "search.resumed"]
        assert sum(told) == len(all_rungs) - len(trained), "what is found is told"


def test_a_population_whose_newest_progress_is_lost_trains_its_lineage_from_the_start(tmp_path: Path) -> None:
    whole = Dying(tmp_path / "whole")
    undisturbed, _ = ride(whole, rows(whole), tmp_path / "scratch")
    for lost in (1, 4, 9):
        root = tmp_path / f"lost-{lost}"
        dying = Dying(root)
        dataset = rows(dying)
        dying.left = 40
        with pytest.raises(Killed):
            ride(dying, dataset, root / "first")
        home = root / "progress" / dying.name
        for newest in sorted(home.iterdir())[-lost:]:
            newest.rename(root / f"gone-{newest.name}")
        survivor = PlainStep(root)
        assert ride(survivor, dataset, root / "second")[0].digest == undisturbed.digest
