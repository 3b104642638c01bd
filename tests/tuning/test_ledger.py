from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from petl_ray.errors import TemporaryError
from petl_ray.tuning.ledger import Copy, Ledger
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


def test_a_checkpoint_that_cannot_be_saved_leaves_the_one_before(tmp_path: Path) -> None:
    class Full(PlainStep):
        full = False

        def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
            if self.full:
                raise TemporaryError("the store", "is full")
            super().save_progress(directory, note)

    step = Full(tmp_path)
    ledger = Ledger(step)
    ledger.reached(1, 0, {"score": 0.1}, FILES)
    step.full = True
    for number in (1, 2):
        with pytest.raises(TemporaryError):
            ledger.reached(number, 1, {"score": 0.2}, {"other": b"2"})
    for one in (ledger, Ledger(step)):
        assert one.checkpoint(1) == (0, FILES) and one.checkpoint(2) is None
        assert one.rungs(1) == {0: {"score": 0.1}} and one.rungs(2) == {}


def test_the_last_checkpoint_stands_until_the_end_of_the_trial_is_recorded(tmp_path: Path) -> None:
    class Away(PlainStep):
        away = False

        def record(self, key: str, value: Mapping[str, Any]) -> None:
            if self.away:
                raise TemporaryError("the journal", "is away")
            super().record(key, value)

    step = Away(tmp_path)
    ledger = Ledger(step)
    ledger.reached(1, 0, {"score": 0.1}, FILES)
    step.away = True
    with pytest.raises(TemporaryError):
        ledger.reached(1, 1, {"score": 0.2}, None)
    assert ledger.checkpoint(1) == (0, FILES)


OTHER = {"slot.json": b"2"}


def test_a_copy_is_there_for_the_next_attempt_and_is_not_made_twice(step: PlainStep) -> None:
    first = Ledger(step)
    first.reached(1, 0, {"score": 0.1}, FILES)
    first.reached(2, 0, {"score": 0.9}, OTHER)
    first.copied([Copy(1, 2, 0)])
    first.reached(2, 1, {"score": 0.95}, FILES)
    again = Ledger(step)
    again.copied([Copy(1, 2, 0)])  # the donor has come further since; the copy is what it was
    assert again.checkpoint(1) == (0, OTHER) and again.rungs(1) == {0: {"score": 0.1}}
    again.reached(1, 1, {"score": 0.92}, OTHER | FILES)
    last = Ledger(step)
    last.copied([Copy(1, 2, 0)])
    assert last.checkpoint(1) == (1, OTHER | FILES) and last.checkpoint(2) == (1, FILES)


def test_where_the_donors_checkpoint_is_gone_the_copy_begins_at_the_start(step: PlainStep) -> None:
    ledger = Ledger(step)
    ledger.reached(1, 0, {"score": 0.1}, FILES)
    ledger.copied([Copy(1, 2, 0)])
    assert ledger.checkpoint(1) is None
