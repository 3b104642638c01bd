"""Faults of machines under a real Ray: none of them is held against a trial, and none of them leaves anything behind."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from petl_ray.artifact import Trial
from petl_ray.errors import BaseModelError, CapacityError, PermanentError
from petl_ray.tuning import SearchSpec, search
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.on_ray import search_all
from petl_ray.tuning.pack import Order, Pack
from petl_ray.tuning.packs import on_ray
from petl_ray.tuning.packs.on_ray import PackActor, Packs
from petl_ray.verb import Question, Resources
from tests.plainstep import PlainStep
from tests.tuning.fake_training.asking import ask, rows
from tests.tuning.fake_training.spec import MiniSpec
from tests.tuning.faulty_training import train
from tests.tuning.faulty_training.session import FaultySpec, lay
from tests.tuning.searches import DiesAfter, Killed, others_hold, packs
from tests.tuning.searches import run as run_plain

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run(step: PlainStep, spec: SearchSpec) -> Trial:
    found = search.using(train=train)(spec, rows(step), step=step)
    assert isinstance(found, Trial)
    return found


def faulty(faults: str = "", **fields: Any) -> SearchSpec:
    return ask(FaultySpec(faults=faults), trials=4, **fields)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of what is searched below where nothing fails."""
    return run(PlainStep(tmp_path_factory.mktemp("undisturbed")), faulty()).digest


def verdicts(step: PlainStep) -> list[str]:
    """What is recorded of trials beside what they are: costs and rungs."""
    return [key for key in step.recorded() if "/" in key]


# --- a base that cannot be opened -----------------------------------------------------------------------------------


def test_processes_that_cannot_open_the_base_make_way_and_no_trial_is_rejected_for_it(
    tmp_path: Path, undisturbed: str
) -> None:
    step, faults = PlainStep(tmp_path / "step", resources=Resources(packs=2)), tmp_path / "faults"
    found = run(step, faulty(lay(faults, "base", times=3), limits={"trained_share": 0.5}))
    assert not list(faults.iterdir()), "three processes could not open it"
    assert "rejected" not in found.about["states"] and found.digest == undisturbed


def test_a_base_that_a_later_process_cannot_open_costs_no_trial_a_try(
    tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials were trained already; the pack that takes the place of a lost one meets the fault at its door."""
    desk, faults = Packs._desk, tmp_path / "faults"

    def lose_the_first(room: Packs, index: int | None, method: str, *arguments: Any) -> Any:
        if method == "checkpoint" and room._opened == 1 and index is not None:
            lay(faults, "base", times=2)
            ray.kill(room._packs[index].actor)
        return desk(room, index, method, *arguments)

    monkeypatch.setattr(Packs, "_desk", lose_the_first)
    found = run(PlainStep(tmp_path / "step"), faulty(lay(faults, "nothing", times=0)))
    assert not list(faults.iterdir()) and found.digest == undisturbed


def test_a_base_that_is_lost_while_trials_train_ends_the_search_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a trial has met it: it is no trial that failed."""
    desk, faults = Packs._desk, tmp_path / "faults"

    def lose_all(room: Packs, index: int | None, method: str, *arguments: Any) -> Any:
        if method == "checkpoint" and room._opened == 2:
            lay(faults, "base")
            for pack in room._packs.values():
                ray.kill(pack.actor)
        return desk(room, index, method, *arguments)

    monkeypatch.setattr(Packs, "_desk", lose_all)
    step = PlainStep(tmp_path / "step", resources=Resources(packs=2))
    with pytest.raises(BaseModelError, match="its directory is missing"):
        run(step, faulty(lay(faults, "nothing", times=0)))
    assert not any("refused" in facts for facts in step.recorded().values())


def test_a_base_that_nobody_can_open_ends_the_search_with_its_own_error_and_leaves_the_next_run_free(
    tmp_path: Path, undisturbed: str
) -> None:
    step, faults = PlainStep(tmp_path / "step"), tmp_path / "faults"
    with pytest.raises(BaseModelError, match="hub:nobody/base: the hub does not give it; its directory is missing"):
        run(step, faulty(lay(faults, "base")))
    assert not verdicts(step)
    (faults / "base").unlink()
    assert run(step, faulty(str(faults))).digest == undisturbed


def test_a_search_whose_base_cannot_be_opened_fails_alone(tmp_path: Path, undisturbed: str) -> None:
    steps = [PlainStep(tmp_path / name) for name in ("lost", "good")]
    specs = [
        ask(FaultySpec(base="lost", faults=lay(tmp_path / "faults", "base")), trials=4),
        ask(FaultySpec(base="mini"), trials=4),
    ]
    questions = [Question(spec.recipe["base"], spec, (rows(step),)) for spec, step in zip(specs, steps, strict=True)]
    lost, good = dict(search_all(questions, steps, train=train)).values()
    assert isinstance(lost, BaseModelError) and not verdicts(steps[0])
    assert isinstance(good, Trial) and good.digest == undisturbed


def test_a_search_without_its_base_has_the_place_of_a_pack_when_the_others_are_done(
    tmp_path: Path, undisturbed: str
) -> None:
    """Of two packs one has room. It cannot open the first search's base, and makes way once the second needs it no more."""
    steps = [PlainStep(tmp_path / name, resources=Resources(packs=2)) for name in ("late", "good")]
    late = ask(FaultySpec(base="late", faults=lay(tmp_path / "faults", "base", times=1)), trials=2)
    questions = [Question("", spec, (rows(step),)) for spec, step in zip((late, faulty()), steps, strict=True)]
    with others_hold(1):
        found = list(dict(search_all(questions, steps, train=train)).values())
    assert [type(one) for one in found] == [Trial, Trial] and found[1].digest == undisturbed  # type: ignore[union-attr]


def test_a_base_that_one_process_cannot_open_is_tried_in_another_where_packs_are_left(
    tmp_path: Path, undisturbed: str
) -> None:
    """The only pack trains the others first, and then makes way."""
    steps = [PlainStep(tmp_path / name) for name in ("late", "good")]
    late = ask(FaultySpec(base="late", faults=lay(tmp_path / "faults", "base", times=2)), trials=2)
    questions = [Question("", spec, (rows(step),)) for spec, step in zip((late, faulty()), steps, strict=True)]
    found = list(dict(search_all(questions, steps, train=train)).values())
    assert [type(one) for one in found] == [Trial, Trial] and found[1].digest == undisturbed  # type: ignore[union-attr]
    assert not list((tmp_path / "faults").iterdir()), "it was tried again"


def test_a_base_that_a_pack_cannot_open_waits_for_its_turn_and_for_nothing_else(tmp_path: Path) -> None:
    """Two bases without room beside one another, and a second pack that never comes up: the first makes way for both."""
    steps = [PlainStep(tmp_path / name, resources=Resources(packs=2)) for name in ("a", "b")]
    specs = [
        ask(FaultySpec(base=f"half-{name}", faults=lay(tmp_path / name / "faults", "base", times=1)), trials=2)
        for name in ("a", "b")
    ]
    questions = [Question("", spec, (rows(step),)) for spec, step in zip(specs, steps, strict=True)]
    with others_hold(1):
        found = dict(search_all(questions, steps, train=train))
    assert [type(one) for one in found.values()] == [Trial, Trial]


# --- a device, a disk, an object store ------------------------------------------------------------------------------


def test_a_process_whose_device_fails_when_a_trial_is_let_in_makes_way_for_another(
    tmp_path: Path, undisturbed: str
) -> None:
    faults = tmp_path / "faults"
    found = run(PlainStep(tmp_path / "step"), faulty(lay(faults, "device", times=1)))
    assert not list(faults.iterdir()) and found.digest == undisturbed


def test_a_trial_goes_to_another_process_than_it_broke_in_whatever_was_the_matter_there(
    tmp_path: Path, undisturbed: str
) -> None:
    """The one it broke in answers at once, so that it always has the fewest orders."""
    step, faults = PlainStep(tmp_path / "step", resources=Resources(packs=2)), tmp_path / "faults"
    assert run(step, faulty(lay(faults, "odd", times=1))).digest == undisturbed
    assert not list(faults.iterdir()) and packs(step)[-1] == 2, "nobody can say that it is the process"


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def a_bug(*_: Any) -> None:
    raise ZeroDivisionError("a bug")


def fill_the_disk(pack: Pack) -> None:
    pack._shelf.put_rows = no_space  # type: ignore[method-assign]


def break_the_shelf(pack: Pack) -> None:
    pack._shelf.put_rows = a_bug  # type: ignore[method-assign]


def lose_the_disk(pack: Pack) -> None:
    pack._shelf.files = no_space  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize(("moment", "fault"), [("put_data", fill_the_disk), ("checkpoint", lose_the_disk)])
def test_a_pack_whose_disk_fails_is_replaced_and_the_outcome_is_the_same(
    tmp_path: Path, moment: str, fault: Any, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, struck = Packs._desk, list[int]()

    def on_a_broken_disk(room: Packs, index: int | None, method: str, *arguments: Any) -> Any:
        if method == moment and not struck and index is not None:
            struck.append(index)
            ray.get(room._packs[index].actor.__ray_call__.remote(fault))
        return desk(room, index, method, *arguments)

    monkeypatch.setattr(Packs, "_desk", on_a_broken_disk)
    assert run(PlainStep(tmp_path), faulty()).digest == undisturbed
    assert struck == [0]


@pytest.fixture
def room(step: PlainStep) -> Iterator[tuple[Packs, Hunt, Order]]:
    """Packs of one search, the first of them up, and the order of its trial 0."""
    hunt = Hunt("q0", Question("mini", ask(trials=4), (rows(step),)), step)
    asked = Packs([hunt], Resources(), "tests.tuning.fake_training.session:open_session")
    deadline = time.monotonic() + 60
    while asked.choose("q0/0") is None and time.monotonic() < deadline:
        time.sleep(0.1)
        asked.look()
    yield asked, hunt, hunt.order(hunt.race.candidates[0])
    asked.close()
    hunt.close()


def test_a_bug_of_a_pack_is_one_error_of_ours_that_names_it(room: tuple[Packs, Hunt, Order]) -> None:
    asked, hunt, order = room
    ray.get(asked._packs[0].actor.__ray_call__.remote(break_the_shelf))
    with pytest.raises(PermanentError, match=r"put_data: .*ZeroDivisionError: a bug"):
        asked.prepare(order, 0)
    assert asked.count == 1 and not hunt.over


def test_disks_that_are_full_wherever_a_pack_is_end_the_search_for_want_of_room(
    room: tuple[Packs, Hunt, Order],
) -> None:
    asked, hunt, order = room
    deadline = time.monotonic() + 60
    while not hunt.over and time.monotonic() < deadline:
        if (index := asked.choose(order.key)) is not None:
            ray.get(asked._packs[index].actor.__ray_call__.remote(fill_the_disk))
            assert asked.prepare(order, index) is None
        time.sleep(0.1)
        asked.look()
    assert isinstance(hunt.race.error, CapacityError) and "No space left on device" in str(hunt.race.error)


def test_rows_without_room_in_the_object_store_are_refused_for_want_of_room(
    room: tuple[Packs, Hunt, Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(value: Any) -> None:
        raise ray.exceptions.ObjectStoreFullError("the local object store is full")

    asked, _, order = room
    monkeypatch.setattr(on_ray.ray, "put", full)
    with pytest.raises(CapacityError, match="the cluster's object store: no room for"):
        asked.prepare(order, 0)


# --- what is left behind --------------------------------------------------------------------------------------------


def root_of(pack: Pack) -> str:
    return str(pack._shelf._scratch.root)


def test_nothing_is_left_of_packs_searches_and_tune_whether_a_search_ends_or_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, roots = on_ray._end, list[str]()

    def note_and_end(going: Sequence[PackActor]) -> None:
        roots.extend(ray.get([pack.actor.__ray_call__.remote(root_of) for pack in going]))
        end(going)

    monkeypatch.setattr(on_ray, "_end", note_and_end)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of this process, whose are those of searches and of Tune
    run_plain(PlainStep(tmp_path / "whole"), ask(trials=4))
    monkeypatch.setattr(DiesAfter, "left", 2)
    with pytest.raises(Killed):
        run_plain(DiesAfter(tmp_path / "killed"), ask(MiniSpec(pause_s=0.2), trials=4))
    assert len(roots) == 2 and not [root for root in roots if Path(root).exists()]
    assert not list(tmp_path.glob("petl-ray-*"))


def still_held(pack: Pack) -> list[str]:
    """The trials of which a pack has a slot or a checkpoint."""
    home = pack._shelf._scratch.path / "checkpoints"
    return sorted({*pack._resident, *(str(path.parent.relative_to(home)) for path in home.glob("*/*/*"))})


@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_a_pack_holds_nothing_of_trials_that_have_ended(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were stopped, and of a population those that have become copies."""
    close, held = Packs.close, list[list[str]]()

    def look_and_close(room: Packs) -> None:
        deadline = time.monotonic() + 10
        for pack in room._packs.values():
            asked: list[str] = ["?"]
            while asked and time.monotonic() < deadline:
                asked = ray.get(pack.actor.__ray_call__.options(concurrency_group="desk").remote(still_held))
            held.append(asked)
        close(room)

    monkeypatch.setattr(Packs, "close", look_and_close)
    run_plain(PlainStep(tmp_path), ask(scheduler=scheduler, algorithm="random"))
    assert held == [[]]
