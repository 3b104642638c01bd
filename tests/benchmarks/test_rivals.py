"""The rivals compute what ours computes: equal weights give equal logits, and trials are validated where they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.questions import RECIPE, Question
from benchmarks.rivals.loop import MODES, Loop
from benchmarks.rivals.models import base_model, tokenizer_of, with_lora
from benchmarks.rivals.trainer import train
from petl_ray.bank import Bank, Segment
from petl_ray.methods import LoraSpec
from petl_ray.models import BaseSpec, load_base, resolve
from tests.training.questions import SIGNS, classification_rows

METHOD = {"kind": "lora", "rank": 4, "alpha": 16, "targets": "all-linear"}
QUESTION = Question(
    "moods",
    {"learning_rate": [1e-3, 5e-3]},
    {**RECIPE, "method": METHOD, "epochs": 2, "learning_rate": 5e-3, "max_length": 32},
    rungs=(0.5, 1.0),
    tested=True,
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for seed, (side, count) in enumerate((("train", 64), ("validation", 24), ("test", 24))):
        lines = classification_rows(count, seed)
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "card.json").write_text(json.dumps({"task": "moods", "labels": sorted(SIGNS)}))
    return tmp_path


@pytest.mark.parametrize("targets", ["query_value", "attention", "mlp", "all-linear"])
def test_equal_weights_give_equal_logits(tiny_bert: Path, targets: str) -> None:
    loaded = load_base(resolve(BaseSpec(source=str(tiny_bert), precision="fp32")), "classification")
    bank = Bank(loaded, slots=1)
    bank.fill(0, LoraSpec(rank=4, alpha=16, targets=targets), 3, 0)
    bank.flat(0).values.add_(0.05 * torch.randn(bank.flat(0).values.shape))
    theirs = with_lora(base_model(str(tiny_bert), 3), {**METHOD, "targets": targets}, 0)
    mine = bank.parameters(0)
    trained = {name: value for name, value in theirs.named_parameters() if value.requires_grad}
    assert len(trained) == len(mine)
    with torch.no_grad():
        for name, value in trained.items():
            short = name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", "")
            value.copy_(mine[short])
        ids = torch.randint(5, 60, (4, 10))
        logits = bank.forward([Segment(0, ids, torch.ones_like(ids))])[0]
        others = theirs.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(logits, others, atol=1e-5)


def test_the_trainer_tells_every_rung_and_tests_at_the_end(tiny_bert: Path, rows: Path) -> None:
    heard: list[dict[str, float]] = []
    found = train(QUESTION, {"learning_rate": 1e-2}, rows, heard.append, str(tiny_bert))
    assert [(one["step"], one["steps"]) for one in heard] == [(8, 16), (16, 16)]
    assert found["steps"] == 16 and found["score"] == heard[-1]["score"] > 0
    assert 0 <= found["test"] <= 1


@pytest.mark.parametrize("mode", MODES)
def test_the_bare_loop_begins_every_trial_anew(tiny_bert: Path, rows: Path, mode: str) -> None:
    question = Question(**{**vars(QUESTION), "mode": mode})
    loop = Loop(question, rows, str(tiny_bert))
    first, _, third = (loop.trial({"learning_rate": rate}) for rate in (1e-2, 1e-3, 1e-2))
    assert first == third
    assert first["steps"] == 16 and 0 < first["score"] <= 1
    assert loop.step_s(steps=3, warm=1) > 0


def test_all_read_the_same_tokens(tiny_bert: Path) -> None:
    text = "the refund was late and the app is awful"
    ours = load_base(resolve(BaseSpec(source=str(tiny_bert), precision="fp32")), "classification").tokenizer
    assert tokenizer_of(str(tiny_bert))(text)["input_ids"] == ours(text)["input_ids"]
