"""A search whose packs or trials are killed for real while they train: no recorded rung is trained again."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from petl_ray.artifact import Trial
from petl_ray.tuning import search
from petl_ray.verb import Resources
from tests.plainstep import PlainStep
from tests.tuning.fake_training import train
from tests.tuning.fake_training.asking import ask, rows
from tests.tuning.fake_training.session import HORIZON
from tests.tuning.fake_training.spec import MiniSpec

pytestmark = pytest.mark.long


@dataclass
class Kills(PlainStep):
    """A step that kills processes of its search, each when one more rung has just been recorded."""

    victim: str = "pack"
    killed: list[int] = field(default_factory=list)
    known_then: list[tuple[set[str], int]] = field(default_factory=list)  # recorded rungs, lines of the log

    def report(self, event: str, /, **facts: Any) -> None:
        super().report(event, **facts)
        if event == "search.rung" and sum(name == event for name, _ in self.events) in (2, 5, 9):
            self.killed.append(kill(self.victim))
            recorded = {key for key in self.recorded() if "/" in key}
            self.known_then.append((recorded, len((self.root / "trained").read_text().splitlines())))


def kill(victim: str) -> int:
    """SIGKILL for the newest process that is a pack, or else a trial; its pid. A search has no other actors."""
    from ray.util.state import list_actors

    here = ray.get_runtime_context().gcs_address
    alive = list_actors(here, filters=[("state", "=", "ALIVE")])
    alive = [one for one in alive if (one.class_name == "Pack") == (victim == "pack")]
    assert alive, f"no {victim} is alive"
    pid = max(int(one.pid) for one in alive)
    os.kill(pid, signal.SIGKILL)
    return pid


def found(step: PlainStep) -> Trial:
    recipe = MiniSpec(pause_s=0.8, log=str(step.root / "trained"))
    outcome = search.using(train=train)(ask(recipe, trials=5), rows(step), step=step)
    assert isinstance(outcome, Trial)
    return outcome


@pytest.mark.parametrize("victim", ["pack", "trial"])
def test_a_process_killed_mid_rung_costs_no_recorded_rung(ray_cluster: str, tmp_path: Path, victim: str) -> None:
    two = Resources(packs=2)
    killed, whole = (
        Kills(tmp_path / "killed", resources=two, victim=victim),
        PlainStep(tmp_path / "whole", resources=two),
    )
    outcome, undisturbed = found(killed), found(whole)
    assert len(set(killed.killed)) == 3
    assert outcome.digest == undisturbed.digest
    assert outcome.about["trained_rungs"] == undisturbed.about["trained_rungs"]
    trained = [line.split() for line in (tmp_path / "killed" / "trained").read_text().splitlines()]
    ends = [round(share * HORIZON) for share in (0.0, *ask().rungs)]
    for key, began, ended in trained:
        assert ends[ends.index(int(ended)) - 1] == int(began), f"{key} was trained again from {began}"
    rungs = [f"{key.split('/')[1]}/{ends.index(int(ended)) - 1}" for key, _, ended in trained]
    if victim == "trial":
        assert len(set(rungs)) == len(rungs), "the pack that was asked first is asked again, and has it"
    assert len(killed.known_then[-1][0]) >= 9
    for recorded, lines in killed.known_then:
        assert recorded <= set(rungs[:lines]) and not recorded & set(rungs[lines:])
