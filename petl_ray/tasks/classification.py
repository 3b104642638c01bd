"""Single-label classification of a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from petl_ray.tasks.batch import Batch, Encoded, RowScore
from petl_ray.tasks.late import LateLogits
from petl_ray.tasks.padding import pad_inputs


class Classification:
    """One label a row; logits are [rows, labels]."""

    name = "classification"
    metrics: tuple[str, ...] = ("accuracy", "macro_f1", "matthews", "loss")

    def encode(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int, template: str = "{prompt}"
    ) -> list[Encoded]:
        """Texts (and pairs) as tokens; a pair that is too long loses tokens from its longer side first."""
        if not rows:
            return []
        texts = [str(row["text"]) for row in rows]
        pairs = [str(row.get("text_pair") or "") for row in rows] if any(row.get("text_pair") for row in rows) else None
        known = tokenizer(texts, pairs, truncation=True, max_length=max_length)
        kinds = known.get("token_type_ids") if pairs is not None else None
        encoded = []
        for index, row in enumerate(rows):
            ids = tuple(known["input_ids"][index])
            encoded.append(
                Encoded(
                    id=str(row.get("id", index)),
                    input_ids=ids,
                    target=None if row.get("label") is None else int(row["label"]),
                    token_type_ids=tuple(kinds[index]) if kinds is not None else None,
                    truncated=bool(known.encodings[index].overflowing),
                )
            )
        return encoded

    def collate(self, encoded: Sequence[Encoded], pad_id: int, pad_to: int | None = None) -> Batch:
        """`targets` int64 [rows], absent if any row has none."""
        input_ids, mask, extra = pad_inputs(encoded, pad_id, pad_to)
        labels = [row.target for row in encoded]
        targets = None if any(label is None for label in labels) else torch.tensor(labels, dtype=torch.long)
        return Batch(tuple(row.id for row in encoded), input_ids, mask, targets, len(encoded), extra)

    def head_size(self, labels: Sequence[str]) -> int:
        """One output a label."""
        return len(labels)

    def loss_sum(self, logits: torch.Tensor | LateLogits, batch: Batch) -> torch.Tensor:
        """Cross-entropy in fp32, summed over rows."""
        assert batch.targets is not None, "a loss needs targets"
        assert isinstance(logits, torch.Tensor), "heads are small: their logits are there"
        return F.cross_entropy(logits.float(), batch.targets.to(logits.device), reduction="sum")

    def score_rows(self, logits: torch.Tensor | LateLogits, batch: Batch) -> list[RowScore]:
        """Argmax, its probability, and each row's cross-entropy (natural logarithm)."""
        assert batch.targets is not None, "scores need targets"
        assert isinstance(logits, torch.Tensor), "heads are small: their logits are there"
        logs = logits.detach().float().log_softmax(-1).cpu()
        best = logs.argmax(-1)
        losses = -logs.gather(1, batch.targets.cpu()[:, None])[:, 0]
        chances = logs.gather(1, best[:, None])[:, 0].exp()
        return [
            RowScore(row, int(truth), int(guess), float(chance), float(loss), 1)
            for row, truth, guess, chance, loss in zip(
                batch.ids, batch.targets.tolist(), best.tolist(), chances.tolist(), losses.tolist(), strict=True
            )
        ]
