"""Stacked tensors of the serving layout: row k holds slot k's values, the last row what leaves the base as it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Stack:
    """One kind of part at one site over all slots. It grows when a larger adapter comes, never per request.

    `rest` gives, per role, the value of rows without a member: zeros for what is added, ones or the base's own for what
    replaces. A slot is written in place; other slots' rows are not touched.
    """

    def __init__(self, slots: int, rest: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.slots, self.dtype, self.device = slots, dtype, device
        self.rest: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        self.members: set[int] = set()
        self.add(rest)

    def add(self, rest: Mapping[str, Tensor]) -> None:
        """Take in further roles, every slot at the value of `rest`."""
        for role, value in rest.items():
            self.rest[role] = value.to(self.device, self.dtype)
            self.tensors[role] = self.rest[role].expand(self.slots + 1, *value.shape).clone()

    def put(self, slot: int, values: Mapping[str, Tensor]) -> None:
        """Write one slot's values, zero-padded to the stack's shape; the stack grows first where they are larger."""
        self.clear(slot)
        for role, value in values.items():
            self._grow(role, value.shape)
            row = self.tensors[role][slot]
            row.zero_()
            row[tuple(slice(0, size) for size in value.shape)].copy_(value)
        self.members.add(slot)

    def clear(self, slot: int) -> None:
        """Give the slot's row back to the base."""
        self.members.discard(slot)
        for role, tensor in self.tensors.items():
            tensor[slot].copy_(self.rest[role])

    def of(self, role: str, rows: Tensor) -> Tensor:
        """The values of `role` for each row of a batch: [rows, …]."""
        return self.tensors[role].index_select(0, rows)

    def _grow(self, role: str, shape: torch.Size) -> None:
        tensor = self.tensors[role]
        wanted = [max(have, need) for have, need in zip(tensor.shape[1:], shape, strict=True)]
        if wanted == list(tensor.shape[1:]):
            return
        larger = tensor.new_zeros(tensor.shape[0], *wanted)
        larger[tuple(slice(0, size) for size in tensor.shape)].copy_(tensor)
        rest = self.rest[role].new_zeros(wanted)
        rest[tuple(slice(0, size) for size in self.rest[role].shape)].copy_(self.rest[role])
        self.rest[role], self.tensors[role] = rest, larger
