"""The rows of one step: what they are called, what they are bound to, and that their contestants agree first."""

from __future__ import annotations

import pytest

from benchmarks import step


@pytest.fixture(autouse=True)
def _base(minilm: str) -> None:
    """Every row is about MiniLM."""


@pytest.mark.parametrize("amx", [True, False])
def test_low_precision_stands_against_both_of_pefts_fp32_modes_and_informs_of_the_third(
    amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "has_amx", lambda: amx)
    plain, faster, half = step._against_peft((2, 8), "bf16", 3)
    assert (plain.figure, plain.reach) == ("one LoRA step 2 x 8, fp32, against PEFT fp32", 1.15)
    name = f"one LoRA step 2 x 8, bf16{'' if amx else ' without AMX'}"
    assert faster.figure == f"{name}, against the faster of PEFT fp32 and autocast"
    assert half.figure == f"{name}, against PEFT over bf16 weights"
    assert (faster.reach, faster.aim) == ((2.0, 4.0) if amx else (None, None))
    assert half.ok is None and faster.ours == half.ours
    assert faster.note.startswith("the faster was ")


def test_where_fp32_is_best_there_is_one_row() -> None:
    assert len(list(step._against_peft((2, 8), "fp32", 2))) == 1


def test_slots_of_a_pass_add_up_to_the_slots_alone_and_full_fine_tuning_begins_as_the_bank_does() -> None:
    assert [row.n for row in step._packed((1, 8), "fp32", 2, slots=2)] == [2]
    assert [row.reach for row in step._against_full((2, 8), 2)] == [1.25]
