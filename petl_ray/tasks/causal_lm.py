"""Prompt and completion for causal language models: only the completion and the end of sequence are scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from petl_ray.errors import DataError
from petl_ray.fingerprint import sha256_of
from petl_ray.tasks.batch import IGNORED, Batch, Encoded, RowScore
from petl_ray.tasks.late import LateLogits, scored
from petl_ray.tasks.padding import pad, pad_inputs


def template_digest(template: str) -> str:
    """sha256 (hex) naming how prompts are written for the model; the completion follows as it stands."""
    return sha256_of({"prompt": template, "completion": "{completion}"})


def render(prompt: str, template: str) -> str:
    """The prompt as the model reads it. Only `{prompt}` is replaced: other braces are text."""
    return template.replace("{prompt}", prompt)


class CausalLm:
    """Logits are [rows, length, vocabulary], there or made late; position i is asked for token i + 1."""

    name = "causal_lm"
    metrics: tuple[str, ...] = ("loss", "perplexity", "accuracy")

    def encode(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int, template: str = "{prompt}"
    ) -> list[Encoded]:
        """Prompt tokens as the tokenizer writes them, then the completion's own tokens, then the end of sequence.

        The two are tokenised apart, so that a prompt alone (as in serving) gives the same tokens as here. A row that
        is too long loses the oldest prompt tokens after the first, then the completion's end. Rows without a
        completion are prompts to be continued. Raises DataError for a tokenizer without an end of sequence.
        """
        if not rows:
            return []
        if (end := tokenizer.eos_token_id) is None:
            raise DataError(
                "tokenizer.eos_token", "got none", "a completion could never end", "Set eos_token in the tokenizer"
            )
        prompts = tokenizer([render(str(row["prompt"]), template) for row in rows])["input_ids"]
        known = [row for row in rows if row.get("completion") is not None]
        texts = [str(row["completion"]) for row in known]
        completions = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
        encoded = []
        for index, row in enumerate(rows):
            answer = [*next(completions), end] if row.get("completion") is not None else None
            encoded.append(_row(str(row.get("id", index)), list(prompts[index]) or [first], answer, max_length))
        return encoded

    def collate(self, encoded: Sequence[Encoded], pad_id: int, pad_to: int | None = None) -> Batch:
        """`targets` int64 [rows, length]: the next token where it is scored, IGNORED elsewhere."""
        input_ids, mask, extra = pad_inputs(encoded, pad_id, pad_to)
        rows = [row.target for row in encoded if isinstance(row.target, tuple)]
        targets = pad(rows, IGNORED, input_ids.shape[1]) if len(rows) == len(encoded) else None
        units = 0 if targets is None else int((targets != IGNORED).sum())
        return Batch(tuple(row.id for row in encoded), input_ids, mask, targets, units, extra)

    def head_size(self, labels: Sequence[str]) -> int:
        """The base's own head answers."""
        return 0

    def loss_sum(self, logits: torch.Tensor | LateLogits, batch: Batch) -> torch.Tensor:
        """Cross-entropy in fp32, summed over scored tokens; only their positions are raised to fp32."""
        assert batch.targets is not None, "a loss needs targets"
        targets = batch.targets.to(_device(logits))
        where = targets != IGNORED
        if isinstance(logits, LateLogits):
            return logits.loss_sum(where, targets[where])
        return F.cross_entropy(logits[where].float(), targets[where], reduction="sum")

    def score_rows(self, logits: torch.Tensor | LateLogits, batch: Batch) -> list[RowScore]:
        """Each row's summed loss over its scored tokens, and whether greedy decoding gives exactly the completion.

        Greedy decoding repeats the completion if and only if every scored token is the argmax given the true ones
        before it, so no generation is needed to know.
        """
        assert batch.targets is not None, "scores need targets"
        targets = batch.targets.to(_device(logits))
        scores = []
        for index, row in enumerate(batch.ids):
            where = targets[index] != IGNORED
            wanted = targets[index][where]
            if isinstance(logits, LateLogits):
                logs, likeliest = logits.scored((index, where), wanted)
            else:
                logs, likeliest = scored(logits[index, where].detach(), wanted)
            loss = float(-logs.double().sum())
            scores.append(RowScore(row, 1, int(likeliest.all()), math.exp(-loss), loss, int(where.sum())))
        return scores


def _device(logits: torch.Tensor | LateLogits) -> torch.device:
    return logits.hidden.device if isinstance(logits, LateLogits) else logits.device


def _row(name: str, prompt: list[int], answer: list[int] | None, max_length: int) -> Encoded:
    """Cut to `max_length` and shift: the target of a position is the token after it."""
    whole = len(prompt) + len(answer or ())
    if answer is not None:
        answer = answer[: max_length - 1]
    room = max_length - len(answer or ())
    if len(prompt) > room:
        # The first token (begin of sequence) steers the model more than old text does.
        prompt = prompt[:1] + (prompt[len(prompt) - room + 1 :] if room > 1 else [])
    ids = (*prompt, *(answer or ()))
    target = None
    if answer is not None:
        target = (*[IGNORED] * (len(prompt) - 1), *answer, IGNORED)
    return Encoded(name, ids, target, truncated=whole > len(ids))
