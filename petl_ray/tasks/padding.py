"""Right padding of token rows into int64 tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from petl_ray.tasks.batch import Encoded


def pad(rows: Sequence[Sequence[int]], value: int, length: int) -> torch.Tensor:
    """int64 [rows, length], each row followed by `value`."""
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long)


def pad_inputs(
    encoded: Sequence[Encoded], pad_id: int, pad_to: int | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Input ids, attention mask (both int64 [rows, length]) and what else the model wants by keyword."""
    length = max(pad_to or 0, max(row.length_tokens for row in encoded))
    input_ids = pad([row.input_ids for row in encoded], pad_id, length)
    mask = pad([[1] * row.length_tokens for row in encoded], 0, length)
    kinds = [row.token_type_ids for row in encoded]
    extra = {}
    if all(kind is not None for kind in kinds):
        extra["token_type_ids"] = pad([kind or () for kind in kinds], 0, length)
    return input_ids, mask, extra
