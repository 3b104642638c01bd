"""Adapters with random weights beside small real bases, and datasets that they can be asked about."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from petl_ray.artifact import Adapter, Dataset
from petl_ray.bank import Bank
from petl_ray.methods import AdapterCard, BottleneckSpec, HeadSpec, LoraSpec
from petl_ray.models import BaseSpec, LoadedBase, load_base, resolve
from tests.bases import WORDS
from tests.plainstep import PlainStep

LABELS = ("bug", "praise", "refund")
METHODS = {"lora": LoraSpec(rank=4, targets="all-linear"), "bottleneck": BottleneckSpec(size=8), "head": HeadSpec()}


def make_adapter(
    step: PlainStep,
    loaded: LoadedBase,
    method: str = "lora",
    labels: Sequence[str] = LABELS,
    seed: int = 0,
    max_length: int = 32,
) -> Adapter:
    """An adapter whose weights were moved away from their start at random, so that it answers in its own way."""
    bank = Bank(loaded, slots=1)
    bank.fill(0, METHODS[method], len(labels), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bank.parameters(0).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    card = AdapterCard(
        task="emails", task_type=loaded.task_type, labels=tuple(labels), max_length=max_length, base=loaded.digest,
        precision=loaded.base.precision, quantization=loaded.base.quantization, tokenizer=loaded.tokenizer_digest,
        method=METHODS[method],
    )  # fmt: skip
    names = bank.export(0, step.out, card)
    count = sum(parameter.numel() for parameter in bank.parameters(0).values())
    bank.detach()
    return Adapter(
        task="emails", task_type=loaded.task_type, labels=tuple(labels), method=method, base=loaded.base.pinned,
        precision=loaded.base.precision, quantization=loaded.base.quantization, trained_parameters=count,
        base_parameters=loaded.parameters, files=step.keep(*names),
    )  # fmt: skip


def make_dataset(step: PlainStep, rows: Mapping[str, Sequence[Mapping[str, Any]]], **fields: Any) -> Dataset:
    """A dataset of the rows given, split by split."""
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row) + "\n" for row in rows.get(split, ())]
        (step.out / f"{split}.jsonl").write_text("".join(lines))
    kept = step.keep("train.jsonl", "validation.jsonl", "test.jsonl")
    counts = {split: len(some) for split, some in rows.items()}
    return Dataset(
        **{"task": "emails", "task_type": "classification", "labels": LABELS, "rows": counts, "files": kept, **fields}
    )


def some_rows(count: int, seed: int, labels: int = 3) -> list[dict[str, Any]]:
    """Rows of three to thirty random words, so that batches need padding; label 0 is the most frequent."""
    dice = random.Random(seed)
    return [
        {
            "id": f"{seed}-{number}",
            "text": " ".join(dice.choices(WORDS, k=dice.randint(3, 30))),
            "label": dice.choice([0, *range(labels)]),
        }
        for number in range(count)
    ]


@pytest.fixture(scope="session")
def bert(tiny_bert: Path) -> LoadedBase:
    return load_base(resolve(BaseSpec(source=str(tiny_bert), precision="fp32")), "classification")


@pytest.fixture(scope="session")
def llama(tiny_llama: Path) -> LoadedBase:
    return load_base(resolve(BaseSpec(source=str(tiny_llama), precision="fp32")), "causal_lm")
