"""Logits made late give the loss, the gradient and the scores that logits give which are there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from petl_ray.models.products import linear
from petl_ray.tasks import Batch, LateLogits, late, task_of
from petl_ray.tasks.batch import IGNORED

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 9, 16, 50


@pytest.fixture
def batch() -> Batch:
    chance = torch.Generator().manual_seed(3)
    targets = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=chance)
    targets[:, :4] = IGNORED
    targets[1, 7:] = IGNORED
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    units = int((targets != IGNORED).sum())
    return Batch(("a", "b", "c"), ids, torch.ones_like(ids), targets, units)


def head(bias: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    chance = torch.Generator().manual_seed(5)
    weight = torch.randn(VOCABULARY, WIDTH, generator=chance)
    return weight, torch.randn(VOCABULARY, generator=chance) if bias else None


def states(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    chance = torch.Generator().manual_seed(7)
    return torch.randn(ROWS, LENGTH, WIDTH, generator=chance).to(dtype).requires_grad_(True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_loss_and_gradient_are_those_of_logits_that_are_there(
    batch: Batch, bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "CHUNK_BYTES", rows * 4 * VOCABULARY)
    task, (weight, shift), mine, theirs = task_of("causal_lm"), head(bias), states(), states()
    there = task.loss_sum(F.linear(theirs, weight, shift), batch)
    made = task.loss_sum(LateLogits(mine, weight, shift), batch)
    torch.testing.assert_close(made, there, rtol=1e-6, atol=1e-5)
    torch.autograd.backward(there / batch.units)
    torch.autograd.backward(made / batch.units)
    assert mine.grad is not None and theirs.grad is not None
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert not mine.grad[:, :4].any(), "what is not scored has no gradient"


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_scores_are_those_of_logits_that_are_there(batch: Batch, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "CHUNK_BYTES", rows * 4 * VOCABULARY)
    task, (weight, _), hidden = task_of("causal_lm"), head(False), states()
    there = task.score_rows(F.linear(hidden, weight), batch)
    made = task.score_rows(LateLogits(hidden, weight, None), batch)
    assert [(one.id, one.prediction, one.units) for one in made] == [
        (one.id, one.prediction, one.units) for one in there
    ]
    assert [one.loss_sum for one in made] == pytest.approx([one.loss_sum for one in there], rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "trained", "scored"),
    [(1, [1] * 13, [1] * 13), (4, [4, 4, 4, 1], [4, 1, 3, 4, 1]), (1000, [13], [5, 3, 5])],
)
def test_no_more_logits_than_a_chunk_are_there_at_a_time(
    batch: Batch, rows: int, trained: list[int], scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 13 scored positions, which lie 5, 3 and 5 in a row; in training each chunk's gradient follows it at once."""
    multiplied: list[int] = []

    def counted(x: torch.Tensor, *head: Any) -> torch.Tensor:
        multiplied.append(len(x))
        return linear(x, *head)

    monkeypatch.setattr(late, "linear", counted)
    monkeypatch.setattr(late, "CHUNK_BYTES", rows * 4 * VOCABULARY)
    task, logits = task_of("causal_lm"), LateLogits(states(), *head(True))
    task.loss_sum(logits, batch)
    assert multiplied == [each for each in trained for _ in ("logits", "gradient")]
    multiplied.clear()
    task.score_rows(logits, batch)
    assert multiplied == scored


def test_in_bf16_the_gradient_agrees_to_its_precision(batch: Batch) -> None:
    task, (weight, _), mine, theirs = task_of("causal_lm"), head(False), states(torch.bfloat16), states(torch.bfloat16)
    half = weight.bfloat16()
    torch.autograd.backward(task.loss_sum(F.linear(theirs, half), batch))
    torch.autograd.backward(task.loss_sum(LateLogits(mine, half, None), batch))
    assert mine.grad is not None and theirs.grad is not None
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-2, atol=2e-2)


def test_a_row_without_a_scored_position_costs_nothing() -> None:
    targets = torch.full((1, LENGTH), IGNORED)
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    hidden = states()[:1]
    loss = task_of("causal_lm").loss_sum(LateLogits(hidden, *head(True)), Batch(("a",), ids, ids, targets, 0))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0.0
