"""Populations and brackets under a real Ray Tune, with the miniature training room behind real pack actors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from petl_ray.spec import with_overrides
from petl_ray.tuning.packs.on_ray import Packs
from petl_ray.verb import Resources
from tests.plainstep import PlainStep
from tests.tuning.fake_training.asking import ask
from tests.tuning.searches import DiesAfter, Killed, assert_same_search, run, table, taken_up

pytestmark = pytest.mark.usefixtures("ray_cluster")

PBT: dict[str, Any] = {
    "scheduler": "pbt",
    "quantile": 0.5,
    "algorithm": "random",
    "trials": 5,
    "rungs": [0.25, 0.5, 1.0],
}


def test_a_population_ends_the_same_whatever_the_placement_and_its_winner_holds_its_lineage(tmp_path: Path) -> None:
    placements = [Resources(cpus=1, packs=1, slots=1), Resources(cpus=1, packs=2, slots=3)]
    steps = [PlainStep(tmp_path / str(index), resources=given) for index, given in enumerate(placements)]
    found = [run(step, ask(**PBT)) for step in steps]
    assert found[0].digest == found[1].digest
    lines = table(steps[0], found[0])
    assert sum(len(line.get("parents", ())) for line in lines) >= 3
    assert found[0].about["trained_rungs"] == 5 * 3, "what is copied is not trained again"
    assert found[0].about["states"] == {"finished": 5}
    assert found[0].overrides == lines[found[0].number]["overrides"]
    assert with_overrides(ask().template(), found[0].overrides)


class DiesCopying(PlainStep):
    """A step whose process ends where copies are to be made durable."""

    def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
        if any("from" in entry for entry in note["trials"].values()):
            raise Killed
        super().save_progress(directory, note)


@pytest.mark.long
def test_a_killed_population_copies_again_what_it_had_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ask(**PBT)
    undisturbed = run(PlainStep(tmp_path / "whole"), spec)
    with pytest.raises(Killed):
        run(DiesCopying(tmp_path / "killed"), spec)
    assert len(PlainStep(tmp_path / "killed").recorded()) == 10, "all at the first rung, nobody beyond"
    monkeypatch.setattr(DiesAfter, "left", 7)
    with pytest.raises(Killed):
        run(DiesAfter(tmp_path / "killed"), spec)
    resumed, before = taken_up(tmp_path / "killed", spec)
    assert before >= 12
    assert_same_search(resumed, undisturbed)


@pytest.mark.long
def test_a_pack_that_is_lost_takes_no_copy_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    desk, left = Packs._desk, 2

    def desk_of_the_dead(room: Packs, index: int | None, method: str, *arguments: Any) -> Any:
        nonlocal left
        if method == "put_checkpoint" and index is not None:
            left -= 1
            if left == 0:
                ray.kill(room._packs[index].actor)
        return desk(room, index, method, *arguments)

    undisturbed = run(PlainStep(tmp_path / "whole"), ask(**PBT))
    monkeypatch.setattr(Packs, "_desk", desk_of_the_dead)
    assert run(PlainStep(tmp_path / "lost", resources=Resources(packs=2)), ask(**PBT)).digest == undisturbed.digest
    assert left <= 0


@pytest.mark.parametrize("decisions", ["rung", pytest.param("async", marks=pytest.mark.long)])
def test_brackets_hold_under_tune(step: PlainStep, decisions: str) -> None:
    found = run(step, ask(scheduler="hyperband", decisions=decisions, trials=16, algorithm="random"))
    lines = table(step, found)
    assert all(len(line["scores"]) > line["bracket"] for line in lines)
    assert {line["bracket"] for line in lines if line["state"] == "finished"} >= {3}
    assert any(line["state"] == "stopped" for line in lines), json.dumps(lines)
