"""Packed and solo: the same outcome, told apart by what shares a process; planned by memory, which is measured."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Trial
from petl_ray.errors import CapacityError
from petl_ray.training import train as real_train
from petl_ray.tuning import SearchSpec, search
from petl_ray.tuning.on_ray import search_all
from petl_ray.tuning.pack import Order, Pack
from petl_ray.verb import Question, Resources, Turn
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe
from tests.tuning.fake_training import train
from tests.tuning.fake_training.asking import ask, rows
from tests.tuning.fake_training.session import MiniSession
from tests.tuning.fake_training.spec import MiniSpec

BY_MEMORY = Resources(packs=1, slots=8, slots_by_memory=True)


def told(step: PlainStep, event: str) -> list[dict[str, Any]]:
    return [facts for name, facts in step.events if name == event]


def test_packed_and_solo_end_in_the_same_digest_and_later_estimates_learn_from_what_they_took(
    ray_cluster: str, tiny_bert: Path, tmp_path: Path
) -> None:
    """Real trainings over a real base, with rates, ranks and batches of their own."""
    base = locked(tiny_bert)
    space = {"learning_rate": {"loguniform": [1e-3, 1e-2]}, "method.rank": [2, 8], "batch_size": [4, 8]}
    found, known = [], list[Mapping[str, Any]]()
    for engine in ("auto", "solo"):
        step = PlainStep(tmp_path / engine, resources=BY_MEMORY, memories={"memory": known})
        question = {"recipe": recipe(base, epochs=1.0), "space": space, "engine": engine, "trials": 4}
        spec = SearchSpec.model_validate({**question, "rungs": (0.5, 1.0), "algorithm": "random"})
        outcome = search.using(train=real_train)(spec, dataset(step, rows=32), step=step)
        assert isinstance(outcome, Trial)
        (event,) = told(step, "search.engine")
        assert event["why"].startswith("packed: 4 slots of" if engine == "auto" else "solo: as asked; one slot of")
        assert outcome.about["engine"]["why"] in event["why"] and event["slots"] == outcome.about["engine"]["slots"]
        memory = outcome.about["memory"]
        assert memory["slots"] == 1 if engine == "solo" else memory["slots"] > 1
        assert memory["base"].startswith(base.pinned.digest) and memory["measured_bytes"] > 0
        found.append(outcome)
        known.append({**memory, "run": "run-1"})
    assert found[0].digest == found[1].digest
    assert found[0].about["engine"]["calibration"] == "not calibrated"
    assert found[1].about["engine"]["calibration"].startswith("calibrated from 1 run (x ")


def test_what_does_not_fit_is_refused_before_it_trains_and_leaves_the_others_alone(
    ray_cluster: str, tmp_path: Path
) -> None:
    steps = [PlainStep(tmp_path / name) for name in ("huge", "mini")]
    questions = [
        Question(base, ask(MiniSpec(base=base), trials=2), (rows(step),))
        for base, step in zip(("huge", "mini"), steps, strict=True)
    ]
    huge, mini = dict(search_all(questions, steps, train=train)).values()
    assert isinstance(huge, CapacityError) and "a base of 1000 GB does not fit into 10 GB" in str(huge)
    assert not told(steps[0], "search.rung") and not told(steps[0], "search.engine")
    assert isinstance(mini, Trial) and mini.about["engine"]["engine"] == "packed"


def test_searches_whose_bases_have_no_room_beside_one_another_have_their_turns(
    ray_cluster: str, tmp_path: Path
) -> None:
    """Of 10 GB each base takes 6: those over the first are searched, then those over the others, each as if alone."""
    log = tmp_path / "log"
    bases = ("big-a", "big-b", "big-a", "big-c")
    steps = [PlainStep(tmp_path / str(index)) for index in range(len(bases))]
    limits = {"memory_bytes": 1 << 20}  # weighed at a pack, in turn too
    questions = [
        Question(str(index), ask(MiniSpec(base=base, seed=index, log=str(log)), trials=3, limits=limits), (rows(step),))
        for index, (base, step) in enumerate(zip(bases, steps, strict=True))
    ]
    found = list(dict(search_all(questions, steps, train=train)).values())
    assert all(isinstance(one, Trial) and one.about["engine"]["base_bytes"] == 6 * 10**9 for one in found)
    order_of = [line.split("/")[0] for line in log.read_text().splitlines()]
    second_on, last = order_of[order_of.index("q1") :], order_of[order_of.index("q3") :]
    assert set(order_of) == {"q0", "q1", "q2", "q3"} and set(second_on) == {"q1", "q3"} and set(last) == {"q3"}
    alone = PlainStep(tmp_path / "alone")
    (second,) = dict(search_all([replace(questions[1], inputs=(rows(alone),))], [alone], train=train)).values()
    assert isinstance(second, Trial) and second.digest == found[1].digest


def test_a_pack_closes_a_session_before_it_looks_at_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows yet whether both have room."""
    open_now: set[MiniSession] = set()
    most: list[int] = []
    opened, closed = MiniSession.__init__, MiniSession.close

    def open_session(session: MiniSession, slots: int) -> None:
        opened(session, slots)
        open_now.add(session)
        most.append(len(open_now))

    def close(session: MiniSession) -> None:
        closed(session)
        open_now.discard(session)

    monkeypatch.setattr(MiniSession, "__init__", open_session)
    monkeypatch.setattr(MiniSession, "close", close)
    pack = Pack("tests.tuning.fake_training.session:open_session", slots=4, threads=1)
    pack.put_data("q0", {"train.jsonl": b"rows"})
    found = pack.footprints([order(0, "mini"), order(1, "mini"), order(2, "other")])
    assert most == [1, 1] and len({one["session"] for one in found}) == 2
    assert pack.advance(order(3, "other"))["steps"] == 25
    pack.leave_sessions()
    assert pack.advance(order(4, "mini"))["steps"] == 25
    assert len(open_now) == 1 and most == [1, 1, 1]
    pack.close()


def order(number: int, base: str) -> Order:
    spec = MiniSpec(seed=number, base=base, pause_s=0.02)
    return Order("q0", number, 0, 0.25, spec.model_dump(), "tests.tuning.fake_training.spec:MiniSpec", 2)


@pytest.mark.parametrize("alone", [True, False])
def test_a_trial_shares_its_process_with_no_other_where_each_is_alone(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits at its door, of one base or of two."""
    company: list[int] = []
    sessions: list[MiniSession] = []
    opened, turned = MiniSession.__init__, MiniSession.turn

    def open_session(session: MiniSession, slots: int) -> None:
        opened(session, slots)
        sessions.append(session)

    def turn(session: MiniSession) -> Turn:
        company.append(sum(len(one._slots) for one in sessions))
        return turned(session)

    monkeypatch.setattr(MiniSession, "__init__", open_session)
    monkeypatch.setattr(MiniSession, "turn", turn)
    pack = Pack("tests.tuning.fake_training.session:open_session", slots=4, threads=1)
    pack.put_data("q0", {"train.jsonl": b"rows"})
    pack.allow(1 if alone else 4, alone)
    orders = [order(number, "mini" if number % 2 else "other") for number in range(6)]
    answers = list(ThreadPoolExecutor(len(orders)).map(pack.advance, orders))
    pack.close()
    assert len(sessions) == 2 and len({answer["loss"] for answer in answers}) == 6
    assert (set(company) == {1}) if alone else (max(company) > 1)
