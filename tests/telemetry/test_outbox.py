"""Events on their way out."""

from __future__ import annotations

import json
import threading

import numpy

from petl_ray.telemetry import Outbox
from petl_ray.telemetry.outbox import plain


def names(outbox: Outbox) -> list[str]:
    return [one.event.event for one in outbox.drain()]


def test_events_leave_in_the_order_they_came_and_only_once() -> None:
    outbox = Outbox()
    outbox.post("r", "step.start", "s", label="a")
    outbox.post("r", "train.step", "s", loss=1.0)
    outbox.post("r", "step.done", "s")
    assert names(outbox) == ["step.start", "train.step", "step.done"]
    assert names(outbox) == []


def test_under_load_old_progress_gives_way_and_the_story_of_the_run_is_kept() -> None:
    outbox = Outbox(limit=3)
    outbox.post("r", "step.start", "s")
    for number in range(100):
        outbox.post("r", "train.step", "s", number=number)
        outbox.post("r", "step.hit", "s")
    left = outbox.drain()
    assert [one.event.facts["number"] for one in left if one.event.event == "train.step"] == [97, 98, 99]
    assert len([one for one in left if one.event.event == "step.hit"]) == 100


def test_what_could_not_be_delivered_comes_first_next_time() -> None:
    outbox = Outbox(limit=2)
    outbox.post("r", "step.start", "s")
    outbox.post("r", "train.step", "s")
    taken = outbox.drain()
    outbox.post("r", "step.done", "s")
    outbox.put_back(taken)
    assert names(outbox) == ["step.start", "train.step", "step.done"]


def test_many_threads_may_post_at_once() -> None:
    outbox = Outbox()
    threads = [threading.Thread(target=lambda: [outbox.post("r", "step.hit") for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outbox.drain()) == 1600


def test_facts_are_plain_json_whatever_was_given() -> None:
    facts = plain(
        {"loss": numpy.float32(0.5), "nan": float("nan"), "far": float("inf"), "list": [numpy.int64(3)], "o": {}}
    )
    assert json.loads(json.dumps(facts, allow_nan=False)) == {
        "loss": 0.5,
        "nan": None,
        "far": "inf",
        "list": [3.0],
        "o": {},
    }


def test_a_fact_may_have_any_name() -> None:
    outbox = Outbox()
    outbox.post("r", "train.step", "s", step=3, event="x", run_id="y")
    (waiting,) = outbox.drain()
    assert waiting.event.step == "s"
    assert waiting.event.facts == {"step": 3, "event": "x", "run_id": "y"}
