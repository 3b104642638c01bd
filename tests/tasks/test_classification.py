"""Classification: tokens, padding, loss and scores against torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from petl_ray.tasks import task_of

TASK = task_of("classification")


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


def test_texts_become_the_tokens_that_the_tokenizer_gives(tokenizer: Any) -> None:
    rows = [{"id": "a", "text": "the app crash", "label": 1}, {"id": "b", "text": "good day", "label": 0}]
    encoded = TASK.encode(rows, tokenizer, 16)
    assert [list(row.input_ids) for row in encoded] == tokenizer(["the app crash", "good day"])["input_ids"]
    assert [(row.id, row.target, row.truncated) for row in encoded] == [("a", 1, False), ("b", 0, False)]


def test_long_texts_are_cut_and_counted(tokenizer: Any) -> None:
    encoded = TASK.encode([{"text": "good " * 30, "label": 0}, {"text": "good " * 6, "label": 0}], tokenizer, 8)
    assert [row.length_tokens for row in encoded] == [8, 8]
    assert [row.truncated for row in encoded] == [True, False]
    assert encoded[0].input_ids[-1] == tokenizer.sep_token_id


def test_pairs_are_told_apart_by_token_types(tiny_bert: Path) -> None:
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
    row = {"text": "the app", "text_pair": "good day", "label": 1}
    encoded = TASK.encode([row], tokenizer, 16)[0]
    assert list(encoded.input_ids) == tokenizer("the app", "good day")["input_ids"]
    assert encoded.token_type_ids is not None
    batch = TASK.collate([encoded], pad_id=0, pad_to=12)
    assert batch.extra["token_type_ids"].shape == (1, 12)
    assert int(batch.extra["token_type_ids"].sum()) == sum(encoded.token_type_ids) > 0


def test_rows_without_labels_make_a_batch_without_targets(tokenizer: Any) -> None:
    batch = TASK.collate(TASK.encode([{"text": "good day"}], tokenizer, 16), pad_id=0)
    assert batch.targets is None


def test_a_batch_is_padded_on_the_right_to_the_longest_row_or_further(tokenizer: Any) -> None:
    encoded = TASK.encode([{"text": "good", "label": 0}, {"text": "good day app", "label": 1}], tokenizer, 16)
    batch = TASK.collate(encoded, pad_id=7)
    assert batch.input_ids.shape == (2, 5)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.input_ids[0, 3:].tolist() == [7, 7]
    assert TASK.collate(encoded, pad_id=7, pad_to=9).input_ids.shape == (2, 9)
    assert TASK.collate(encoded, pad_id=7, pad_to=2).input_ids.shape == (2, 5)


def test_the_summed_loss_is_cross_entropy_in_fp32_whatever_the_logits_are(tokenizer: Any) -> None:
    encoded = TASK.encode([{"text": "good", "label": 2}, {"text": "bad", "label": 0}], tokenizer, 16)
    batch = TASK.collate(encoded, pad_id=0)
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]], dtype=torch.bfloat16)
    loss = TASK.loss_sum(logits, batch)
    by_hand = sum(-(row.float() - row.float().logsumexp(0))[label] for row, label in zip(logits, [2, 0], strict=True))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-6)


def test_row_scores_add_up_to_the_loss_and_name_the_argmax(tokenizer: Any) -> None:
    encoded = TASK.encode(
        [{"id": "x", "text": "good", "label": 2}, {"id": "y", "text": "bad", "label": 0}], tokenizer, 16
    )
    batch = TASK.collate(encoded, pad_id=0)
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.0, 0.0]])
    scores = TASK.score_rows(logits, batch)
    assert [(row.id, row.reference, row.prediction, row.units) for row in scores] == [("x", 2, 2, 1), ("y", 0, 1, 1)]
    assert sum(row.loss_sum for row in scores) == pytest.approx(float(TASK.loss_sum(logits, batch)), rel=1e-6)
    assert scores[0].probability == pytest.approx(float(logits[0].softmax(0)[2]), rel=1e-6)


def test_the_head_has_one_output_a_label() -> None:
    assert TASK.head_size(("a", "b", "c")) == 3
