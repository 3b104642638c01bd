"""Rows, adapters and cards for tests of the bank."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petl_ray.bank.bank import Bank
from petl_ray.bank.training import Segment
from petl_ray.methods import AdapterCard, AdapterFiles, read_adapter
from petl_ray.models.loading import LoadedBase


def rows(slot: int, count: int, length: int, seed: int = 0, highest: int = 90) -> Segment:
    """Random rows of one slot; the second row, if there is one, is two tokens shorter."""
    generator = torch.Generator().manual_seed(1000 * slot + seed)
    ids = torch.randint(5, highest, (count, length), generator=generator)
    mask = torch.ones_like(ids)
    if count > 1 and length > 3:
        ids[1, -2:], mask[1, -2:] = 0, 0
    return Segment(slot, ids, mask)


def shake(parameters: Iterable[Tensor], seed: int = 0, by: float = 0.1) -> None:
    """Move parameters away from their first values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def card(loaded: LoadedBase, method: Any, labels: int) -> AdapterCard:
    """The card an adapter of `loaded` carries."""
    return AdapterCard(
        task="a task",
        task_type=loaded.task_type,
        labels=tuple(f"label {index}" for index in range(labels)),
        max_length=64,
        base=loaded.digest,
        precision=loaded.base.precision,
        quantization=loaded.base.quantization,
        tokenizer=loaded.tokenizer_digest,
        method=method,
    )


def trained(loaded: LoadedBase, method: Any, labels: int, directory: Path, seed: int = 0) -> AdapterFiles:
    """An adapter with shaken weights, written to `directory` and read back."""
    bank = Bank(loaded, 1)
    bank.fill(0, method, labels, seed)
    shake(bank.parameters(0).values(), seed)
    bank.export(0, directory, card(loaded, method, labels))
    bank.detach()
    return read_adapter(directory, loaded)
