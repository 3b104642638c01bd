"""Prompt and completion: what is scored, what is cut, and that teacher forcing tells what greedy decoding would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from petl_ray.errors import DataError
from petl_ray.tasks import Outcomes, measure, task_of
from petl_ray.tasks.batch import IGNORED
from petl_ray.tasks.causal_lm import render, template_digest

TASK = task_of("causal_lm")


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


def test_only_the_completion_and_its_end_are_scored(tokenizer: Any) -> None:
    row = TASK.encode([{"prompt": "the app", "completion": "good day"}], tokenizer, 16)[0]
    prompt = tokenizer("the app")["input_ids"]
    answer = [*tokenizer("good day", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert list(row.input_ids) == [*prompt, *answer]
    assert row.target == (*[IGNORED] * (len(prompt) - 1), *answer, IGNORED)


def test_a_prompt_alone_has_the_tokens_it_has_in_training(tokenizer: Any) -> None:
    row = {"prompt": "the app", "completion": "good"}
    whole = TASK.encode([row], tokenizer, 16, "now {prompt}")[0]
    alone = TASK.encode([{"prompt": "the app"}], tokenizer, 16, "now {prompt}")[0]
    assert whole.input_ids[: len(alone.input_ids)] == alone.input_ids
    assert alone.target is None


def test_templates_replace_only_the_prompt_and_have_a_name_of_their_own() -> None:
    assert render("{x} a", "{{Q}} {prompt} {y}") == "{{Q}} {x} a {y}"
    assert template_digest("{prompt}") != template_digest("{prompt} ")


def test_a_long_row_loses_old_prompt_tokens_first(tokenizer: Any) -> None:
    row = {"prompt": "one two three red blue", "completion": "good day"}
    cut = TASK.encode([row], tokenizer, 6)[0]
    prompt = tokenizer("one two three red blue")["input_ids"]
    assert cut.truncated and cut.length_tokens == 6
    assert list(cut.input_ids[:3]) == [prompt[0], *prompt[-2:]]
    assert cut.input_ids[-1] == tokenizer.eos_token_id


def test_a_completion_longer_than_the_limit_keeps_one_prompt_token(tokenizer: Any) -> None:
    cut = TASK.encode([{"prompt": "one two", "completion": "good " * 20}], tokenizer, 5)[0]
    assert cut.length_tokens == 5
    assert cut.target is not None and not isinstance(cut.target, int)
    assert sum(token != IGNORED for token in cut.target) == 4


def test_a_tokenizer_without_an_end_is_refused(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="eos_token"):
        TASK.encode([{"prompt": "a", "completion": "b"}], tokenizer, 8)


def test_the_loss_equals_that_of_transformers(tokenizer: Any, model: Any) -> None:
    rows = [{"prompt": "the app", "completion": "good day"}, {"prompt": "one", "completion": "two three red"}]
    batch = TASK.collate(TASK.encode(rows, tokenizer, 16), pad_id=0)
    assert batch.targets is not None
    labels = torch.full_like(batch.targets, IGNORED)
    labels[:, 1:] = batch.targets[:, :-1]
    with torch.no_grad():
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
        ours = TASK.loss_sum(out.logits, batch) / batch.units
    assert float(ours) == pytest.approx(float(out.loss), rel=1e-5)
    outcomes = Outcomes.of(TASK.score_rows(out.logits, batch))
    assert measure("loss", outcomes) == pytest.approx(float(out.loss), rel=1e-5)
    assert measure("perplexity", outcomes) == pytest.approx(float(out.loss.exp()), rel=1e-5)


def test_exact_rows_are_those_that_greedy_decoding_repeats(tokenizer: Any, model: Any) -> None:
    prompt = tokenizer("the app", return_tensors="pt")["input_ids"]
    greedy = model.generate(prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)[0].tolist()
    targets = [IGNORED] * (prompt.shape[1] - 1) + greedy[prompt.shape[1] :] + [IGNORED]
    from petl_ray.tasks import Encoded

    right = Encoded("right", tuple(greedy), tuple(targets))
    last = (greedy[-1] + 1) % 100
    wrong = Encoded("wrong", (*greedy[:-1], last), (*targets[:-2], last, IGNORED))
    batch = TASK.collate([right, wrong], pad_id=0)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    scores = TASK.score_rows(logits, batch)
    assert [score.prediction for score in scores] == [1, 0]
    assert measure("accuracy", Outcomes.of(scores)) == 0.5
