import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from petl_ray.errors import TemporaryError
from petl_ray.tuning.pack import Order, Pack
from petl_ray.verb import Turn
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
    with pytest.raises(RuntimeError, match="a turn broke"):  # whoever looks after packs replaces it
        pack.has("q0/1", 0)


def test_an_order_that_is_asked_for_again_is_not_trained_again(pack: Pack, tmp_path: Path) -> None:
    """Who asked first may have died: a trial's process is replaced, and its order comes once more."""
    recipe = MiniSpec(pause_s=1.0, log=str(tmp_path / "trained"))
    first = order(1, 0, recipe)
    twice = list(ThreadPoolExecutor(2).map(pack.advance, [first, first]))
    assert twice[0] == twice[1] == pack.advance(first)
    pack.advance(order(1, 1, recipe))
    assert (tmp_path / "trained").read_text().splitlines() == ["q0/1 0 25", "q0/1 25 50"]
