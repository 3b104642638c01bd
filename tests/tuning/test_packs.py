"""Packs under a real Ray: they come when there is room, join, are lost, replaced or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from petl_ray.errors import CapacityError, PermanentError
from petl_ray.tuning.pack import Order, Pack
from petl_ray.tuning.packs.on_ray import Packs
from petl_ray.verb import Resources
from tests.plainstep import PlainStep
from tests.tuning.fake_training.asking import ask
from tests.tuning.fake_training.spec import MiniSpec
from tests.tuning.searches import others_hold, packs, run, rungs

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_search_goes_on_with_the_packs_that_have_room(tmp_path: Path) -> None:
    two = Resources(packs=2)
    held, whole = PlainStep(tmp_path / "held", resources=two), PlainStep(tmp_path / "whole", resources=two)
    with others_hold(1):
        found = run(held, ask(trials=4))
    assert packs(held) == [1] and held.events[0] == ("search.packs", {"up": 1, "asked": 2})
    assert run(whole, ask(trials=4)).digest == found.digest


def test_a_pack_that_comes_up_later_joins_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for it when the first rung has been trained; the others of that rung wait until it is up."""
    files, trained_by = Packs.files, list[int]()

    def checkpoint(room: Packs, key: str, rung: int) -> Any:
        if not trained_by:
            free()
            ray.get([pack.ready for pack in room._packs.values()], timeout=60)
        found = files(room, key, rung)
        if found:
            trained_by.append(room.last[key])
        return found

    monkeypatch.setattr(Packs, "files", checkpoint)
    step = PlainStep(tmp_path, resources=Resources(packs=2))
    with others_hold(1) as free:
        run(step, ask(MiniSpec(pause_s=1.0), trials=4))
    assert packs(step) == [1, 2]
    assert set(trained_by) == {0, 1}, "each has trials whose checkpoints come from it"


class Continues(PlainStep):
    """A step that sees to it that what continues a rung is durable when the rung is recorded."""

    def record(self, key: str, value: Mapping[str, Any]) -> None:
        number, _, rung = key.partition("/")
        if rung in ("0", "1", "2"):
            saved = self.load_progress()
            assert saved is not None and saved.note["trials"][number]["rung"] == int(rung)
            assert any((saved.directory / number).rglob("*.json"))
        super().record(key, value)


@pytest.mark.parametrize(
    "moment",
    ["checkpoint", "weigh", *(pytest.param(name, marks=pytest.mark.long) for name in ("put_data", "put_checkpoint"))],
)
def test_a_pack_that_is_lost_is_replaced_and_the_outcome_is_the_same(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pack is asked when it is found dead."""
    desk, weigh, choose, left = Packs._desk, Packs.weigh, Packs.choose, 1

    def kill(room: Packs, index: int | None) -> None:
        nonlocal left
        left -= 1
        if left == 0 and index is not None:
            ray.kill(room._packs[index].actor)

    def desk_of_the_dead(room: Packs, index: int | None, method: str, *arguments: Any) -> Any:
        if method == moment:
            kill(room, index)
        return desk(room, index, method, *arguments)

    def weigh_and_die(room: Packs, orders: list[Order]) -> Any:
        promise = weigh(room, orders)
        if moment == "weigh" and promise is not None:
            kill(room, promise[0])
        return promise

    def never_where_it_was(room: Packs, key: str) -> int | None:
        index = choose(room, key)
        others = [other for other, pack in room._packs.items() if pack.up and other != room.last.get(key)]
        return others[0] if index is not None and others else index

    if moment == "put_checkpoint":
        monkeypatch.setattr(Packs, "choose", never_where_it_was)
    monkeypatch.setattr(Packs, "_desk", desk_of_the_dead)
    monkeypatch.setattr(Packs, "weigh", weigh_and_die)
    spec = ask(limits={"trained_share": 0.5} if moment == "weigh" else {}, trials=4)
    lost, whole = Continues(tmp_path / "lost", resources=Resources(packs=2)), PlainStep(tmp_path / "whole")
    found = run(lost, spec)
    assert left <= 0
    assert found.digest == run(whole, spec).digest
    heard = [(facts["trial"], facts["rung"]) for facts in rungs(lost)]
    assert len(heard) == len(set(heard))


def test_packs_that_are_lost_again_and_again_end_the_search(step: PlainStep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pack, "__init__", dies_at_birth)
    with pytest.raises(PermanentError, match="its packs were lost more often than they may be"):
        run(step, ask())


def dies_at_birth(pack: Pack, *_: Any) -> None:
    raise OSError("no space left on device")


def test_what_the_cluster_cannot_hold_is_refused_before_it_starts(tmp_path: Path) -> None:
    step = PlainStep(tmp_path, resources=Resources(cpus=64))
    with pytest.raises(CapacityError, match="64 CPU"):
        run(step, ask())
    assert not step.events


def test_a_pack_that_no_single_machine_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 2.0}} for name in "abcd"]
    monkeypatch.setattr(ray, "nodes", lambda: small)
    with pytest.raises(CapacityError, match="the 4 machines of the cluster hold 0"):
        run(PlainStep(tmp_path, resources=Resources(cpus=8)), ask())


def test_a_process_in_which_every_pass_breaks_makes_way_for_another(tmp_path: Path) -> None:
    """As after a fault of a GPU: its actor answers still, and whatever it is asked to train breaks."""
    broken, whole = PlainStep(tmp_path / "broken"), PlainStep(tmp_path / "whole")
    found = run(broken, ask(MiniSpec(spoils=str(tmp_path / "spoilt")), trials=4))
    assert (tmp_path / "spoilt").read_text(), "a process was spoilt"
    assert found.digest == run(whole, ask(trials=4)).digest
