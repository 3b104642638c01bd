"""Searches of the miniature training room: asked, read, killed and taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from petl_ray.artifact import Dataset, Trial
from petl_ray.tuning import SearchSpec, search
from tests.plainstep import PlainStep
from tests.tuning.fake_training import train
from tests.tuning.fake_training.asking import rows


def run(step: PlainStep, spec: SearchSpec, dataset: Dataset | None = None) -> Trial:
    found = search.using(train=train)(spec, dataset or rows(step), step=step)
    assert isinstance(found, Trial)
    return found


def table(step: PlainStep, trial: Trial) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (step.fetch(trial) / "trials.jsonl").read_text().splitlines()]


def rungs(step: PlainStep) -> list[dict[str, Any]]:
    return [facts for event, facts in step.events if event == "search.rung"]


def packs(step: PlainStep) -> list[int]:
    """How many packs were up, as it changed."""
    return [facts["up"] for event, facts in step.events if event == "search.packs"]


@contextmanager
def others_hold(cores: int) -> Iterator[Callable[[], None]]:
    """As a replica that serves: cores of the cluster are held until the block ends, or what it yields is called."""
    holder = ray.remote(dict).options(num_cpus=cores).remote()
    ray.get(holder.__ray_ready__.remote())
    try:
        yield lambda: ray.kill(holder)
    finally:
        ray.kill(holder)


class Killed(BaseException):
    """As a SIGKILL: nothing catches it."""


class DiesAfter(PlainStep):
    """A step whose process ends at the n-th record of a rung, before it is written."""

    left = 7

    def record(self, key: str, value: Mapping[str, Any]) -> None:
        if "/" in key:
            type(self).left -= 1
            if self.left < 0:
                raise Killed
        super().record(key, value)


def taken_up(killed: Path, spec: SearchSpec) -> tuple[Trial, int]:
    """What a killed search ends in, and how many rungs had been recorded; none of them is trained again."""
    survivor = PlainStep(killed)
    before = {key for key in survivor.recorded() if "/" in key}
    resumed = run(survivor, spec)
    trained = {f"{facts['trial']}/{facts['rung']}" for facts in rungs(survivor) if not facts["replayed"]}
    assert not before & trained
    return resumed, len(before)


def assert_same_search(resumed: Trial, undisturbed: Trial) -> None:
    """The same outcome by the same rungs, each of them trained once."""
    assert resumed.digest == undisturbed.digest
    assert resumed.about["replayed_rungs"] + resumed.about["trained_rungs"] == undisturbed.about["trained_rungs"]
