"""One trial without a trainer: a bare loop over PEFT, its base and its rows read once and used by every next trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.questions import BASE, Question, put_in
from benchmarks.rivals.models import base_model, encoded, label_count, tokenizer_of, with_lora
from petl_ray.training.schedule import rate_factor

MODES = ("fp32", "autocast", "half")  # half: bf16 weights and explicit attention, and autocast
_EVALUATION_ROWS = 64


class Loop:
    """What a process holds between two trials."""

    def __init__(self, question: Question, folder: Path, source: str = BASE) -> None:
        self._question = question
        tokenizer = tokenizer_of(source)
        self._pad = int(tokenizer.pad_token_id)
        length = question.recipe["max_length"]
        self._sides = {side: encoded(folder, side, tokenizer, length) for side in ("train", "validation")}
        self._base = base_model(source, label_count(folder), half=question.mode == "half")

    def trial(self, overrides: dict[str, Any]) -> dict[str, float]:
        """Train one configuration to the end: `score` on the validation rows, `steps`."""
        recipe, seed = put_in(self._question.recipe, overrides), self._question.seed
        model = with_lora(self._base, recipe["method"], seed, keep=True)
        batches = list(self._batches(recipe, seed))
        step = self._step(model, recipe, len(batches))
        for number, batch in enumerate(batches):
            step(number, batch)
        return {"score": self._score(model), "steps": float(len(batches))}

    def step_s(self, steps: int = 12, warm: int = 4) -> float:
        """Seconds of one step of the recipe as it stands, the median of `steps`."""
        recipe = {**self._question.recipe, "epochs": 4}
        model = with_lora(self._base, recipe["method"], 0, keep=True)
        batches = list(self._batches(recipe, 0))[: steps + warm]
        step, times = self._step(model, recipe, len(batches)), []
        for number, batch in enumerate(batches):
            began = time.perf_counter()
            step(number, batch)
            times.append(time.perf_counter() - began)
        return sorted(times[warm:])[len(times[warm:]) // 2]

    def _step(self, model: Any, recipe: dict[str, Any], steps: int) -> Callable[[int, list[dict[str, Any]]], None]:
        parameters = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=recipe["learning_rate"], weight_decay=0.0, fused=True)

        def step(number: int, batch: list[dict[str, Any]]) -> None:
            for group in optimizer.param_groups:
                group["lr"] = recipe["learning_rate"] * rate_factor(number, steps, recipe["warmup_share"], "linear")
            tensors = self._padded(batch)
            with self._autocast():
                logits = model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
            torch.autograd.backward(F.cross_entropy(logits.float(), tensors["labels"]))
            torch.nn.utils.clip_grad_norm_(parameters, recipe["gradient_clip"], foreach=True)
            optimizer.step()
            optimizer.zero_grad()

        return step

    @torch.no_grad()
    def _score(self, model: Any) -> float:
        rows = sorted(self._sides["validation"], key=lambda row: len(row["input_ids"]))
        right = 0
        for start in range(0, len(rows), _EVALUATION_ROWS):
            tensors = self._padded(rows[start : start + _EVALUATION_ROWS])
            with self._autocast():
                logits = model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
            right += int((logits.argmax(-1) == tensors["labels"]).sum())
        return right / len(rows)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._question.mode != "fp32")

    def _batches(self, recipe: dict[str, Any], seed: int) -> Iterator[list[dict[str, Any]]]:
        chance, size = torch.Generator().manual_seed(seed), int(recipe["batch_size"])
        for _ in range(int(recipe["epochs"])):
            order = torch.randperm(len(self._sides["train"]), generator=chance).tolist()
            yield from (
                [self._sides["train"][at] for at in order[start : start + size]] for start in range(0, len(order), size)
            )

    def _padded(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), length), self._pad)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[at, : len(row["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}
