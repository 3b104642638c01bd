"""The benchmark for GPUs runs everywhere with small shapes, and its numbers are right before they are fast."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from benchmarks.contest import agreement, beside_peft, nf4_error, timed_step
from benchmarks.equality import STEPS
from benchmarks.gpu import SMALL, measure, table
from benchmarks.shapes import base


def test_the_small_course_yields_all_kinds_of_rows() -> None:
    found = list(measure(SMALL, "cpu"))
    text = table(found)
    for part in (
        "NF4 forward",
        "against itself alone",
        "against PEFT from equal weights, tiny Llama, NF4",
        "a pack of 4",
        "turns of a session",
        "QLoRA, 64 tokens",
        "one after another",
    ):
        assert part in text
    assert all(row.ok for row in found if row.unit == "rel.")
    assert all(row.ratio > 0 and row.ours > 0 for row in found if row.unit != "rel.")


def test_an_nf4_base_agrees_with_its_dequantised_weights_and_not_with_the_whole_ones() -> None:
    packed = base("tiny Llama", "fp32", nf4=True)
    assert nf4_error(packed) < 1e-4
    ids = torch.arange(3, 19).unsqueeze(0)
    with torch.no_grad():
        apart = packed.model(input_ids=ids).logits - base("tiny Llama", "fp32").model(input_ids=ids).logits
    assert float(apart.norm()) > 1e-3, "nothing was quantised"


@pytest.mark.parametrize("grouped", [True, False])
def test_slots_agree_with_themselves_alone(grouped: bool) -> None:
    assert agreement(lambda: base("tiny Llama", "fp32"), grouped=grouped, steps=10) < 1e-4


@pytest.mark.parametrize("shape", ["tiny BERT", "tiny Llama"])
def test_a_pack_of_one_takes_the_steps_that_peft_takes(shape: str) -> None:
    """From equal weights, so that losses are equal but for rounding; they fall, so that steps are taken."""
    ours, theirs = beside_peft(shape, "fp32", "cpu")
    assert len(ours) == STEPS and ours == pytest.approx(theirs, rel=1e-4)
    assert theirs[-1] < theirs[0] * (1 - 5e-4)


def test_nothing_is_timed_where_the_numbers_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "beside_peft", lambda *asked: ([1.0, 0.9, 0.8], [1.0, 0.9, 0.9]))
    found = list(measure(SMALL, "cpu"))
    assert {row.unit for row in found} == {"rel."}
    assert [row.ok for row in found if "from equal weights" in row.figure] == [False] * 3
    assert gpu._limit("a little over", 1.01e-3, 1e-3).ok is False


def test_a_row_of_correctness_says_whether_it_is_within_its_limit() -> None:
    row = gpu._limit("well within", 1e-5, 1e-3)
    assert row.ok is True and row.spread is None and row.ratio == 100.0


def test_a_point_has_a_median_and_a_spread() -> None:
    point = timed_step(lambda: torch.zeros(()), 3, "cpu", warm=1)
    assert point.step_s >= 0 and point.rounds == 3 and point.peak_gb == 0
