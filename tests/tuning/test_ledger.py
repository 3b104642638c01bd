from pathlib import Path

import pytest

from petl_ray.tuning.ledger import Ledger
from tests.plainstep import PlainStep

FILES = {"slot.json": b"1", "deep/weights": b"\x00\xff"}


def test_a_rung_and_its_checkpoint_are_there_for_the_next_attempt(step: PlainStep) -> None:
    first = Ledger(step)
    first.asked(3, {"rank": 4})
    first.weighed(3, {"trained_share": 0.1})
    first.reached(3, 0, {"score": 0.5}, FILES)
    again = Ledger(step)
    assert again.overrides(3) == {"rank": 4} and again.overrides(4) is None
    assert again.cost(3) == {"trained_share": 0.1}
    assert again.rungs(3) == {0: {"score": 0.5}}
    assert again.checkpoint(3) == (0, FILES) and again.checkpoint(4) is None


def test_a_checkpoint_that_outlived_its_record_brings_the_rung_with_it(tmp_path: Path) -> None:
    class Killed(BaseException): ...

    class Dies(PlainStep):
        def record(self, key: str, value: object) -> None:
            raise Killed

    with pytest.raises(Killed):
        Ledger(Dies(tmp_path)).reached(1, 0, {"score": 0.25}, FILES)
    survivor = PlainStep(tmp_path)
    assert survivor.recorded() == {}
    assert Ledger(survivor).rungs(1) == {0: {"score": 0.25}}
    assert survivor.recorded() == {"1/0": {"score": 0.25}}


def test_what_has_ended_is_left_out_of_the_next_progress(step: PlainStep) -> None:
    ledger = Ledger(step)
    ledger.reached(1, 0, {"score": 0.1}, FILES)
    ledger.forget(1)
    ledger.reached(2, 0, {"score": 0.2}, FILES)
    ledger.reached(2, 1, {"score": 0.3}, None)
    again = Ledger(step)
    assert again.checkpoint(1) is None and again.checkpoint(2) == (0, FILES)
    assert again.rungs(2) == {0: {"score": 0.2}, 1: {"score": 0.3}}


def test_trial_1_is_not_trial_11(step: PlainStep) -> None:
    ledger = Ledger(step)
    ledger.reached(11, 0, {"score": 0.1}, None)
    assert ledger.rungs(1) == {} and set(ledger.rungs(11)) == {0}
