"""What a frozen prefix makes of each row, computed once and kept for every occupant of a session and every epoch.

Each row's states are those of the row alone, without padding: they depend on the row and the base and on nothing
else, so it makes no difference to an outcome who asked first, what was kept, or what had to be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from petl_ray.bank import Bank, States
from petl_ray.models import LoadedBase
from petl_ray.tasks import Encoded, Task
from petl_ray.training.sharing import Sharing

MOST_BYTES = 512 << 20  # kept in all; rows beyond are computed whenever they are asked for
PASS_TOKENS = 4096

_Key = tuple[int, tuple[int, ...], tuple[int, ...] | None]


class Prefixes:
    """The states of rows behind the base's lowest layers."""

    def __init__(self, bank: Bank, loaded: LoadedBase, sharing: Sharing) -> None:
        self._bank, self._device, self._pad_id = bank, loaded.device, loaded.pad_id
        self._most_tokens = min(PASS_TOKENS, sharing.tokens or PASS_TOKENS) if sharing.shared else 0
        self._kept: dict[_Key, torch.Tensor] = {}
        self._room_bytes = MOST_BYTES

    def states(self, depth: int, rows: Sequence[Encoded], task: Task, length: int) -> States:
        """Those of `rows` behind `depth` layers, padded with zeros to `length` tokens."""
        found = {key: self._kept[key] for row in rows if (key := _key(depth, row)) in self._kept}
        missing = {key: row for row in rows if (key := _key(depth, row)) not in found}
        for part in self._passes(list(missing.values())):
            batch = task.collate(part, self._pad_id)
            ids, mask = batch.input_ids.to(self._device), batch.attention_mask.to(self._device)
            extra = {name: value.to(self._device) for name, value in batch.extra.items()}
            values = self._bank.frozen_states(depth, ids, mask, extra).values
            for row, value in zip(part, values, strict=True):
                found[_key(depth, row)] = self._keep(_key(depth, row), value)
        parts = [found[_key(depth, row)] for row in rows]
        return States(depth, torch.stack([F.pad(part, (0, 0, 0, length - len(part))) for part in parts]))

    def _passes(self, rows: list[Encoded]) -> Iterator[list[Encoded]]:
        """Rows of one length each, as many as may share a pass."""
        rows.sort(key=lambda row: row.length_tokens)
        start = 0
        while start < len(rows):
            length = rows[start].length_tokens
            most = max(1, self._most_tokens // length)
            part = [row for row in rows[start : start + most] if row.length_tokens == length]
            yield part
            start += len(part)

    def _keep(self, key: _Key, value: torch.Tensor) -> torch.Tensor:
        size = value.numel() * value.element_size()
        if size <= self._room_bytes:
            value = value.clone()  # not a view that would hold its whole pass
            self._kept[key] = value
            self._room_bytes -= size
        return value


def _key(depth: int, row: Encoded) -> Any:
    return depth, row.input_ids, row.token_type_ids
