"""What may be asked of training, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from petl_ray.fingerprint import fingerprint, sha256_of
from petl_ray.training import TrainSpec, train

BASE = {"pinned": {"uri": "package:x", "digest": "0" * 64}, "precision": "fp32"}


def _spec(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"base": BASE} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens_per_step": 16}, "tokens_per_step: got 16 with max_length 128"),
        ({"metric": "perplexity"}, "metric: got perplexity with task_type classification"),
        ({"metric": "macro_f1", "task_type": "causal_lm"}, "metric: got macro_f1 with task_type causal_lm"),
        ({"template": "Q: A:"}, "without {prompt} every row would look the same"),
        ({"method": {"kind": "head"}, "gradient_checkpointing": True}, "nothing below the head"),
        ({"method": {"kind": "lora", "rank": 0}}, "a LoRA of rank 0 learns nothing"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"learning_rates": 1e-3}, "Extra inputs"),
    ],
)
def test_impossible_questions_are_refused_in_plain_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _spec(**changes)
    assert words in str(caught.value)


def test_a_question_survives_json() -> None:
    spec = _spec(method={"kind": "bottleneck", "size": 8}, task_type="causal_lm", metric="loss")
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec


def test_the_pace_of_checkpoints_and_the_place_of_the_base_bear_no_identity() -> None:
    moved = BASE | {"pinned": {"uri": "/elsewhere", "digest": "0" * 64}}
    assert sha256_of(_spec()) == sha256_of(_spec(checkpoint_every_s=5, base=moved))
    assert sha256_of(_spec()) != sha256_of(_spec(learning_rate=2e-3))


def test_metrics_know_which_way_is_better() -> None:
    assert _spec().mode == "max"
    assert _spec(metric="loss").mode == "min"


def test_the_default_question_keeps_its_name() -> None:
    """A reminder: when the meaning of training changes, raise the verb's version and write the new name here."""
    assert train.version == 1
    assert fingerprint(train.identity, _spec()).startswith("4bae72b45d4c348c")


def test_workers_choose_the_distributed_form_without_changing_the_name() -> None:
    assert train.distributed == "petl_ray.training.on_ray:train"
    assert "distributed" not in train.identity
