"""A small real world to serve: a store, a journal database, and adapters made by the bank over a tiny random base."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sqlalchemy import delete, insert

from petl_ray.artifact import Adapter, FileEntry, Release
from petl_ray.bank import Bank, ServingBank
from petl_ray.methods import AdapterCard, BottleneckSpec, HeadSpec, LoraSpec, read_adapter
from petl_ray.models import BaseSpec, LoadedBase, load_base, resolve
from petl_ray.store import open_database, open_store
from petl_ray.store.tables import names, promotions
from petl_ray.tasks import task_of

TEXTS = ("my order is late please help", "great app I love it", "the login is broken", "refund my money", "why so slow")
FILES = ("adapter_model.safetensors", "adapter_config.json", "card.json", "golden.safetensors")
METHODS = {"lora": LoraSpec(targets="all-linear"), "bottleneck": BottleneckSpec(size=8), "head": HeadSpec()}


@dataclass
class World:
    """Services below one directory. `base` is loaded once and lent to banks that give it back."""

    root: Path
    base: LoadedBase
    clock: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def services(self) -> dict[str, str]:
        return {
            "store": (self.root / "store").as_uri(),
            "database": f"sqlite:///{self.root / 'journal.db'}",
            "home": str(self.root / "home"),
        }

    def adapter(
        self,
        task: str,
        labels: Sequence[str] = ("no", "yes"),
        *,
        seed: int = 0,
        method: str = "lora",
        spoil: Callable[[Path], None] | None = None,
    ) -> Adapter:
        """A real adapter with random weights that matter; `spoil` may change its files before they are kept."""
        base = self.base
        directory = self.root / f"made-{next(self.clock)}"
        labels = tuple(labels) if base.task_type == "classification" else ()
        card = AdapterCard(
            task=task,
            task_type=base.task_type,
            labels=labels,
            max_length=32,
            base=base.digest,
            precision=base.base.precision,
            quantization=base.base.quantization,
            tokenizer=base.tokenizer_digest,
            method=METHODS[method],
            template="{prompt}" if base.task_type == "causal_lm" else None,
        )
        bank = Bank(base, slots=1)
        bank.fill(0, METHODS[method], len(labels), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in bank.parameters(0).values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        bank.export(0, directory, card)
        bank.detach()
        save_file(self.golden(directory), directory / "golden.safetensors")
        if spoil:
            spoil(directory)
        return Adapter(
            task=task,
            task_type=base.task_type,
            labels=labels,
            method=method,
            base=base.base.pinned,
            precision=base.base.precision,
            quantization=base.base.quantization,
            trained_parameters=1,
            base_parameters=base.parameters,
            files=tuple(self.keep(directory / name) for name in FILES if (directory / name).exists()),
        )

    def golden(self, directory: Path) -> dict[str, torch.Tensor]:
        """Answers in the serving layout, each row by itself."""
        batch, logits = self.batch(TEXTS[:3]), []
        serving = ServingBank(self.base, slots=1)
        serving.install(0, read_adapter(directory, self.base))
        for row in range(3):
            size = int(batch.attention_mask[row].sum())
            [given] = serving.answer(
                [0], batch.input_ids[row : row + 1, :size], batch.attention_mask[row : row + 1, :size]
            )
            logits.append(given[-1] if given.ndim == 2 else given)
        serving.detach()
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "logits": torch.stack(logits).float().contiguous(),
        }

    def batch(self, texts: Sequence[str]) -> Any:
        """Texts as a padded batch."""
        task = task_of(self.base.task_type)
        rows = [{"text": text, "prompt": text} for text in texts]
        return task.collate(task.encode(rows, self.base.tokenizer, 32), self.base.pad_id)

    def expected(self, adapter: Adapter, texts: Sequence[str]) -> list[torch.Tensor]:
        """What the adapter answers alone, one text at a time: the oracle for everything mixed."""
        serving = ServingBank(self.base, slots=1)
        try:
            serving.install(0, read_adapter(self.fetch(adapter), self.base))
            batches = [self.batch([text]) for text in texts]
            return [serving.answer([0], batch.input_ids, batch.attention_mask)[0] for batch in batches]
        finally:
            serving.detach()

    def fetch(self, adapter: Adapter) -> Path:
        """The adapter's files in a fresh directory."""
        directory = self.root / f"fetched-{next(self.clock)}"
        directory.mkdir()
        for entry in adapter.files:
            open_store(self.services["store"]).get(entry.sha256, directory / entry.path)
        return directory

    def keep(self, path: Path) -> FileEntry:
        """Put one file into the store."""
        sha256, size = open_store(self.services["store"]).put(path)
        return FileEntry(path=path.name, sha256=sha256, size_bytes=size)

    def promote(self, adapter: Adapter, version: int, action: str = "promote", digest: str | None = None) -> Release:
        """Write the promotion row and, unless it is a refusal, let the name mean it."""
        release = Release(task=adapter.task, version=version, adapter=adapter, status="champion")
        row = {
            "key": f"{adapter.task}-{version}-{next(self.clock)}",
            "task": adapter.task,
            "alias": "champion",
            "action": action,
            "adapter_digest": digest or adapter.digest,
            "version": version,
            "release": release.model_dump(mode="json"),
            "actor": "test",
            "reasons": [],
            "at": time.time(),
        }
        with open_database(self.services["database"]).begin() as connection:
            number = connection.execute(insert(promotions).values(row)).inserted_primary_key[0]
            if action != "refuse":
                connection.execute(delete(names).where(names.c.task == adapter.task))
                row = {key: row[key] for key in ("task", "alias", "adapter_digest", "version")}
                connection.execute(insert(names).values(**row, promotion_id=number, changed_at=time.time()))
        return release


def make_world(root: Path, source: Path, task_type: Any = "classification") -> World:
    """A world over the base in `source`, in fp32."""
    locked = resolve(BaseSpec(source=str(source), precision="fp32"))
    return World(root, load_base(locked, task_type, device="cpu"))
