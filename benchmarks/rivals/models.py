"""The rivals' model and rows: MiniLM with PEFT's LoRA and the head that transformers gives it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from benchmarks.questions import labels, rows
from petl_ray.models import BaseSpec, resolve
from petl_ray.models.sources import locate

SETS = {
    "query_value": ("attention.self.query", "attention.self.value"),
    "attention": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    "mlp": (".intermediate.dense", ".output.dense"),
}


def directory(source: str) -> Path:
    """Where the base's files lie."""
    return locate(resolve(BaseSpec(source=source)).pinned)


def base_model(source: str, count: int, half: bool = False) -> Any:
    """The classification model in fp32, or with bf16 weights. Its own dropout is off, as it is in ours."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "eager"} if half else {}
    return AutoModelForSequenceClassification.from_pretrained(
        directory(source),
        num_labels=count,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        local_files_only=True,
        **options,
    )


def with_lora(base: Any, method: dict[str, Any], seed: int, keep: bool = False) -> Any:
    """`base` (a copy of it with `keep`) with PEFT's LoRA; what is trained is fp32."""
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(seed)
    model = copy.deepcopy(base) if keep else base
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=int(method["rank"]),
        lora_alpha=int(method["alpha"]),
        lora_dropout=0.0,
        target_modules=targets(model, str(method["targets"])),
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def targets(model: Any, named: str) -> list[str]:
    """Full names of the linear maps of BERT's layers that a named set stands for."""
    linears = [
        name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and ".encoder.layer." in name
    ]
    if named == "all-linear":
        return linears
    inner = [name for name in linears if named != "mlp" or ".attention." not in name]
    return [name for name in inner if name.endswith(SETS[named])]


def encoded(folder: Path, side: str, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """The rows of one side as token ids with their labels."""
    found = rows(folder, side)
    tokens = tokenizer([row["text"] for row in found], truncation=True, max_length=max_length)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": int(row["label"])}
        for row, ids, mask in zip(found, tokens["input_ids"], tokens["attention_mask"], strict=True)
    ]


def tokenizer_of(source: str) -> Any:
    """The base's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory(source), local_files_only=True)


def label_count(folder: Path) -> int:
    """How many labels the prepared rows have."""
    return len(labels(folder))
