import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from petl_ray.errors import BaseModelError, CapacityError, PetlRayError, TemporaryError
from petl_ray.spec import Spec
from petl_ray.tuning.pack import Order, Pack, PackBroken
from petl_ray.tuning.sessions import NoSession
from petl_ray.verb import Turn
from tests.tuning.fake_training import session as mini_room
from tests.tuning.fake_training.session import MiniSession
from tests.tuning.fake_training.spec import Lora, MiniSpec

DOOR = "tests.tuning.fake_training.session:open_session"
ROWS = {"train.jsonl": b"rows", "validation.jsonl": b""}


def order(number: int, rung: int, recipe: MiniSpec | None = None) -> Order:
    name = "tests.tuning.fake_training.spec:MiniSpec"
    return Order("q0", number, rung, (0.25, 0.5, 1.0)[rung], (recipe or MiniSpec(seed=number)).model_dump(), name, 2)


@pytest.fixture
def pack() -> Iterator[Pack]:
    pack = Pack(DOOR, slots=2, threads=1)
    pack.put_data("q0", ROWS)
    yield pack
    pack.close()


def scores(pack: Pack, *orders: Order) -> list[float]:
    return [pack.advance(one)["score"] for one in orders]


def test_more_trials_than_slots_take_turns_and_lose_nothing(pack: Pack) -> None:
    straight = {number: scores(pack, *(order(number, rung) for rung in range(3))) for number in range(5)}
    other = Pack(DOOR, slots=2, threads=1)
    other.put_data("q0", ROWS)
    turns = [scores(other, *(order(number, rung) for number in range(5))) for rung in range(3)]
    assert [list(row) for row in zip(*turns, strict=True)] == list(straight.values())
    other.close()


def test_a_trial_goes_on_in_another_process_from_its_checkpoint(pack: Pack) -> None:
    whole = scores(pack, *(order(7, rung) for rung in range(3)))
    half = Pack(DOOR, slots=1, threads=1)
    half.put_data("q0", ROWS)
    assert scores(half, order(7, 0)) == whole[:1]
    moved = Pack(DOOR, slots=1, threads=1)
    moved.put_data("q0", ROWS)
    moved.put_checkpoint("q0/7", 0, half.checkpoint("q0/7", 0))
    assert scores(moved, order(7, 1), order(7, 2)) == whole[1:]


def test_without_its_checkpoint_a_trial_is_trained_from_the_start_to_the_same_score(pack: Pack) -> None:
    whole = scores(pack, *(order(7, rung) for rung in range(3)))
    fresh = Pack(DOOR, slots=1, threads=1)
    fresh.put_data("q0", ROWS)
    assert scores(fresh, order(7, 2)) == whole[2:]


def test_a_checkpoint_that_cannot_be_continued_is_left_and_its_trial_begins_again(pack: Pack) -> None:
    whole = scores(pack, *(order(7, rung) for rung in range(3)))
    scores(pack, order(8, 0))
    other = Pack(DOOR, slots=1, threads=1)
    other.put_data("q0", ROWS)
    other.put_checkpoint("q0/7", 0, pack.checkpoint("q0/8", 0))
    assert scores(other, order(7, 1), order(7, 2)) == whole[1:]
    other.close()


def test_what_does_not_fit_here_may_fit_elsewhere_and_what_fits_nowhere_is_refused_for_good(pack: Pack) -> None:
    here = pack.advance(order(1, 0, MiniSpec(too_long=True)))
    assert "does not fit" in here["refused"] and here["only_here"] == "memory"
    assert "only_here" not in pack.advance(order(2, 0, MiniSpec(method=Lora(rank=666))))


def test_a_pack_knows_the_orders_that_it_can_answer_when_they_are_asked_again(pack: Pack) -> None:
    scores(pack, order(1, 0))
    with pytest.raises(ZeroDivisionError):
        pack.advance(order(2, 0, MiniSpec(method=Lora(rank=999))))
    slow = MiniSpec(pause_s=1.0)
    with ThreadPoolExecutor(1) as caller:
        told = caller.submit(pack.advance, order(3, 0, slow))
        deadline = time.monotonic() + 10
        while not pack.has("q0/3", 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not told.done()
    there = {(key, rung) for key in ("q0/1", "q0/2", "q0/3") for rung in (0, 1) if pack.has(key, rung)}
    assert there == {("q0/1", 0), ("q0/3", 0)}, "what broke in the pack itself goes wherever there is room"


def test_a_pack_without_the_rows_asks_to_try_again(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="restarted"):
        Pack(DOOR, slots=1, threads=1).advance(order(0, 0))


def test_a_finished_trial_leaves_its_slot_and_its_files(pack: Pack) -> None:
    scores(pack, *(order(1, rung) for rung in range(3)))
    assert pack.checkpoint("q0/1", 2) == {} and pack._resident == {}


def test_divergence_and_refusal_are_answers_and_bugs_are_not(pack: Pack) -> None:
    assert pack.advance(order(1, 0, MiniSpec(learning_rate=2)))["diverged"]
    assert "does not fit" in pack.advance(order(2, 0, MiniSpec(method=Lora(rank=666))))["refused"]
    with pytest.raises(ZeroDivisionError):
        pack.advance(order(3, 0, MiniSpec(method=Lora(rank=999))))
    assert pack.weigh([order(1, 0)]) == [{"trained_share": 0.008, "memory_bytes": 8192.0}]


def test_orders_train_side_by_side_and_the_waiting_take_the_first_free_slot(tmp_path: Path) -> None:
    """Real slots over a real base; each comes to the score it has alone, whoever comes and goes beside it."""
    from tests.tuning.real import orders_and_rows

    orders, rows = orders_and_rows(tmp_path)
    door = "petl_ray.training.session:open_session"
    alone = []
    for one in orders:
        single = Pack(door, slots=1, threads=1)
        single.put_data("q0", rows)
        alone.append(single.advance(one))
        single.close()
    pack = Pack(door, slots=2, threads=1)
    pack.put_data("q0", rows)
    together = list(ThreadPoolExecutor(len(orders)).map(pack.advance, orders))
    pack.close()
    for each in (*alone, *together):
        each.pop("seconds")
    assert together == alone
    assert len({answer["loss"] for answer in alone}) == len(orders)


def test_a_broken_turn_breaks_everybody_in_it_and_nobody_after(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(session: MiniSession) -> Turn:
        raise RuntimeError("the device is gone")

    expected = pack.advance(order(1, 0))
    monkeypatch.setattr(MiniSession, "turn", break_down)
    with pytest.raises(RuntimeError, match="device"):
        pack.advance(order(2, 0))
    monkeypatch.undo()
    assert pack.advance(order(2, 0))["score"] != expected["score"]
    with pytest.raises(PackBroken, match=r"a turn broke.*the device is gone"):  # whoever looks after packs replaces it
        pack.has("q0/1", 0)


def test_an_order_that_is_asked_for_again_is_not_trained_again(pack: Pack, tmp_path: Path) -> None:
    """Who asked first may have died: a trial's process is replaced, and its order comes once more."""
    recipe = MiniSpec(pause_s=1.0, log=str(tmp_path / "trained"))
    first = order(1, 0, recipe)
    twice = list(ThreadPoolExecutor(2).map(pack.advance, [first, first]))
    assert twice[0] == twice[1] == pack.advance(first)
    pack.advance(order(1, 1, recipe))
    assert (tmp_path / "trained").read_text().splitlines() == ["q0/1 0 25", "q0/1 25 50"]


def raising(error: Exception) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    return fails


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BaseModelError("hub:nobody/base", "the hub does not give it"), BaseModelError),
        (TemporaryError("hub:nobody/base", "the hub does not answer"), TemporaryError),
        (torch.OutOfMemoryError("CUDA out of memory"), CapacityError),
        (torch.AcceleratorError("CUDA error: unknown error"), TemporaryError),
        (ImportError("no such library"), PetlRayError),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_a_base_that_cannot_be_opened_is_no_verdict_on_any_trial(
    pack: Pack, error: Exception, reason: type[PetlRayError], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = list[int]()
    monkeypatch.setattr(mini_room, "open_session", lambda *_: opened.append(1) or raising(error)())
    for ask in (pack.advance, lambda one: pack.weigh([one]), lambda one: pack.has(one.key, one.rung)):
        with pytest.raises(NoSession) as told:
            ask(order(1, 0))
        assert isinstance(told.value.reason, reason) and str(error).rstrip(".") in str(told.value)
    (figures,) = pack.footprints([order(1, 0)])
    assert isinstance(figures["unopened"], NoSession)
    assert len(opened) == 1, "a hub that does not answer is not waited for again and again"


def test_a_base_that_cannot_be_opened_leaves_trials_over_another_alone(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = mini_room.open_session

    def open_session(spec: Spec, slots: int, threads: int) -> MiniSession:
        if getattr(spec, "base", "") == "lost":
            raise BaseModelError("lost", "no such directory")
        return opens(spec, slots, threads)

    monkeypatch.setattr(mini_room, "open_session", open_session)
    with pytest.raises(NoSession):
        pack.advance(order(1, 0, MiniSpec(base="lost")))
    assert pack.advance(order(2, 0))["steps"] == 25 and pack.has("q0/2", 0)


@pytest.mark.parametrize("moment", ["admit", "save"])
def test_a_device_that_fails_for_one_trial_ends_the_process(
    pack: Pack, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MiniSession, moment, raising(RuntimeError("CUDA error: an illegal memory access")))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        pack.advance(order(1, 0))
    with pytest.raises(PackBroken, match="its device failed: RuntimeError: CUDA error"):
        pack.has("q0/1", 0)


def test_a_slot_that_cannot_be_freed_ends_the_process_and_everybody_is_answered(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MiniSession, "turn", raising(RuntimeError("the device is gone")))
    monkeypatch.setattr(MiniSession, "drop", raising(RuntimeError("the device is gone")))
    for number in (1, 2):
        with pytest.raises(RuntimeError, match="the device is gone"):
            pack.advance(order(number, 0))
    with pytest.raises(PackBroken):
        pack.has("q0/1", 0)


class Narrow:
    """Memory for the slot of one trial at a time, and for that of trial 9 never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.company: list[int] = []
        admit, turn = MiniSession.admit, MiniSession.turn

        def narrow(session: MiniSession, key: str, *question: Any) -> None:
            if session._slots or key == "q0/9":
                raise CapacityError(f"memory for {key}", "out of memory")
            admit(session, key, *question)

        def seen(session: MiniSession) -> Turn:
            self.company.append(len(session._slots))
            return turn(session)

        monkeypatch.setattr(MiniSession, "admit", narrow)
        monkeypatch.setattr(MiniSession, "turn", seen)


def test_who_does_not_fit_beside_others_waits_until_they_are_done(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [scores(pack, *(order(number, rung) for rung in range(3))) for number in range(3)]
    room, slow = Narrow(monkeypatch), Pack(DOOR, slots=3, threads=1)
    slow.put_data("q0", ROWS)
    for rung in range(3):
        orders = [order(number, rung, MiniSpec(seed=number)) for number in range(3)]
        answers = list(ThreadPoolExecutor(3).map(slow.advance, orders))
        assert [answer["score"] for answer in answers] == [mine[rung] for mine in alone]
    assert set(room.company) == {1}
    slow.close()


def test_who_does_not_fit_even_alone_is_refused_when_it_is_alone(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    Narrow(monkeypatch)
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(pack.advance, order(1, 0, MiniSpec(pause_s=2.0)))
        deadline = time.monotonic() + 10
        while "q0/1" not in pack._under_way and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = callers.submit(pack.advance, order(9, 0))
        assert refused.result()["only_here"] == "memory"
    assert first.result()["steps"] == 25 and not pack._resident, "who stayed in a slot had to make room as well"


def test_a_trial_that_is_forgotten_leaves_its_slot_and_its_checkpoint(pack: Pack) -> None:
    scores(pack, order(1, 0), order(2, 0))
    pack.forget("q0/1")
    assert scores(pack, order(2, 1)), "what is asked later is done later"
    assert pack.checkpoint("q0/1", 0) == {} and pack.checkpoint("q0/2", 1) and list(pack._resident) == ["q0/2"]
