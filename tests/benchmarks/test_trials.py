"""What memory and idle time are measured on: trials of a real pack, whose session takes the steps that PEFT takes."""

from __future__ import annotations

import pytest

from benchmarks import resident
from benchmarks.packs import _gaps, _slots
from benchmarks.trials import check_session, driven, order, recipe, seeded


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_session_takes_the_steps_that_peft_takes(minilm: str, precision: str) -> None:
    check_session(precision)


def test_a_driven_pack_answers_all_orders_of_a_rung(minilm: str) -> None:
    specs = seeded(recipe("fp32", epochs=0.5), 3)
    assert [spec.seed for spec in specs] == [0, 1, 2]
    with driven(2) as answers:
        for rung, share in enumerate((0.5, 1.0)):
            told = answers([order(number, spec, rung, share) for number, spec in enumerate(specs)])
            assert [facts["steps"] for facts in told] == [2 * share] * 3
            assert all(0 <= facts["score"] <= 1 for facts in told)


def test_a_gap_lies_between_every_two_occupants(minilm: str) -> None:
    gaps = _gaps(3)
    assert len(gaps) == 2 and all(gap > 0 for gap in gaps)


def test_a_pack_tells_its_peak_when_all_its_trials_took_all_their_steps(
    minilm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    resident.train_together(2, "fp32")
    assert float(capsys.readouterr().out) > 100
    resident.train_alone("fp32")
    assert float(capsys.readouterr().out) > 100


def test_a_row_says_where_a_pack_has_so_many_slots() -> None:
    assert _slots(4) == "4 is what `slots: auto` gives a search on a CPU"
    assert _slots(32).startswith("32 is a number that was asked for: ")
