"""The benchmark for GPUs runs everywhere with small shapes, and its numbers are right before they are fast."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contest import agreement, nf4_error, pack_step, peft_step, timed_step
from benchmarks.gpu import SMALL, measure, table
from benchmarks.shapes import base


def test_the_small_course_yields_all_kinds_of_rows() -> None:
    found = list(measure(SMALL, "cpu"))
    text = table(found)
    for part in (
        "NF4 forward",
        "against itself alone",
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


def test_a_pack_of_one_takes_the_steps_that_peft_takes() -> None:
    """Other first values, so losses are near and not equal; both fall."""
    for shape in ("tiny BERT", "tiny Llama"):
        ours = pack_step(base(shape, "fp32"), 1, 2, 8)
        theirs = peft_step(shape, "fp32", 2, 8, "cpu")
        mine, other = [float(ours()) for _ in range(30)], [float(theirs()) for _ in range(30)]
        assert mine[0] == pytest.approx(other[0], rel=0.1)
        assert mine[-1] < mine[0] and other[-1] < other[0]


def test_a_point_has_a_median_and_a_spread() -> None:
    point = timed_step(lambda: torch.zeros(()), 3, "cpu", warm=1)
    assert point.step_s >= 0 and point.rounds == 3 and point.peak_gb == 0
