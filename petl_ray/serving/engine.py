"""The engine of one replica: one frozen base, adapters in its slots, rows in, logits out. Plain torch, no queue.

`encode` runs on any one thread at a time and `read` on any thread; everything else belongs to the device thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from petl_ray.bank import ServingBank
from petl_ray.errors import AdapterError
from petl_ray.methods import AdapterCard, AdapterFiles, read_adapter
from petl_ray.models import load_base, use_threads
from petl_ray.serving.golden import Golden, check_alone, check_beside, read_golden
from petl_ray.serving.names import Group, Named
from petl_ray.tasks import Encoded, task_of
from petl_ray.tasks.causal_lm import template_digest


@dataclass(frozen=True)
class Row:
    """One encoded row and the slot whose adapter answers it."""

    slot: int
    encoded: Encoded


@dataclass(frozen=True)
class Prepared:
    """An adapter that was read and validated and may be installed."""

    card: AdapterCard
    files: AdapterFiles
    golden: Golden


class Engine:
    """Loads the base of `group` once and never changes it. Raises what `load_base` raises."""

    def __init__(self, group: Group, slots: int, threads: int, device: str = "auto") -> None:
        use_threads(threads)
        self.group = group
        self.base = load_base(group.base, group.task_type, device)
        self._task = task_of(group.task_type)
        self._bank = ServingBank(self.base, slots)
        self._tokenizer = threading.Lock()  # fast tokenizers keep truncation as state

    def encode(self, card: AdapterCard, texts: Sequence[str], pairs: Sequence[str | None]) -> list[Encoded]:
        """Texts as the adapter saw them in training: same tokenizer, template and length limit."""
        rows: list[dict[str, Any]]
        if self.group.task_type == "causal_lm":
            rows = [{"prompt": text} for text in texts]
        else:
            rows = [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]
        with self._tokenizer:
            return self._task.encode(rows, self.base.tokenizer, card.max_length, card.template or "{prompt}")

    def forward(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """For each row fp32 logits on the CPU: [labels], or [vocabulary] of the next token for language models."""
        batch = self._task.collate([row.encoded for row in rows], self.base.pad_id)
        given = self._answer([row.slot for row in rows], batch.input_ids, batch.attention_mask, dict(batch.extra))
        if self.group.task_type == "causal_lm":
            given = [one[row.encoded.length_tokens - 1] for one, row in zip(given, rows, strict=True)]
        return [one.float().cpu() for one in given]

    def read(self, named: Named, directory: Path) -> Prepared:
        """See `Bench.read`: PEFT's files by our own validator, card and golden answers, all of them about this base."""
        files = read_adapter(directory, self.base)
        self._check_card(named, files.card)
        return Prepared(files.card, files, read_golden(directory))

    def install(self, slot: int, prepared: Prepared) -> None:
        """Put an adapter into a free slot."""
        self._bank.install(slot, prepared.files)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self._bank.clear(slot)

    def kind(self, prepared: Prepared) -> tuple[str, int]:
        """Neighbours differ by method and by number of labels."""
        return prepared.card.method.kind, len(prepared.card.labels)

    def prove_alone(self, slot: int, prepared: Prepared) -> None:
        """Golden answers in batches of the adapter's own."""
        check_alone(slot, prepared.golden, self._answer, self.group.base.precision)

    def prove_beside(self, slot: int, prepared: Prepared, company: Mapping[int, Prepared]) -> None:
        """Golden answers of the adapter and of its neighbours in one batch with rows of the plain base."""
        others = {other: one.golden for other, one in company.items()}
        check_beside(slot, prepared.golden, others, self._answer, self.group.base.precision)

    def provenance(self, named: Named, card: AdapterCard) -> dict[str, Any]:
        """What answers for `named`: the facts that every response carries."""
        return {
            "task": named.task,
            "version": named.version,
            "adapter": named.digest,
            "method": card.method.kind,
            "base": self.base.digest,
            "precision": self.group.base.precision,
            "quantization": self.group.base.quantization,
            "tokenizer": self.base.tokenizer_digest,
            "template": template_digest(card.template or "{prompt}") if self.group.task_type == "causal_lm" else None,
        }

    def _answer(
        self, slots: Sequence[int | None], ids: torch.Tensor, mask: torch.Tensor, extra: dict[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        device = self.base.device
        moved = {name: value.to(device) for name, value in extra.items()}
        return list(self._bank.answer(slots, ids.to(device), mask.to(device), moved or None))

    def _check_card(self, named: Named, card: AdapterCard) -> None:
        """The card must say of task, labels, base and tokenizer what the release says; AdapterError otherwise."""
        adapter, base = named.adapter, self.group.base
        facts = {
            "task": (card.task, adapter.task),
            "task_type": (card.task_type, self.group.task_type),
            "labels": (card.labels, adapter.labels),
            "base": (card.base, base.pinned.digest),
            "precision": (card.precision, base.precision),
            "quantization": (card.quantization, base.quantization),
            "tokenizer": (card.tokenizer, self.base.tokenizer_digest),
        }
        for fact, (said, wanted) in facts.items():
            if said != wanted:
                raise AdapterError(
                    f"{named.model} card.json {fact}",
                    f"got {str(said)[:80]}",
                    f"what is served here is {str(wanted)[:80]}",
                    "Serve it on the base it was trained for, or train it again",
                )
