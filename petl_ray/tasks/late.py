"""Logits that are made late: only for the positions that are scored, and for a loss only a piece at a time.

A language model's logits are by far its largest activation: 512 tokens of a vocabulary of 128 thousand take 262 MB in
fp32, and autograd keeps them twice. Where the head is frozen its gradient is known as soon as the logits are, so the
loss goes over the positions in chunks, turns each chunk's logits into the gradient of its hidden states at once and
forgets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from petl_ray.models.products import linear

CHUNK_BYTES = 32 << 20  # of one chunk's logits in fp32


@dataclass(frozen=True)
class LateLogits:
    """Hidden states [rows, length, width] before a frozen head `weight` [vocabulary, width], `bias` [vocabulary]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @torch.no_grad()
    def scored(self, where: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of each of the positions `hidden[where]`, in chunks: the log-probability of its target (fp32), and whether that
        is the likeliest."""
        hidden = self.hidden[where]
        parts = [
            scored(linear(mine, self.weight, self.bias), wanted)
            for mine, wanted in zip(torch.split(hidden, self._rows), torch.split(targets, self._rows), strict=True)
        ]
        logs, likeliest = zip(*parts, strict=True)
        return torch.cat(logs), torch.cat(likeliest)

    def loss_sum(self, where: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in fp32 summed over the positions of the mask `where` [rows, length]; `targets` are theirs."""
        result: Tensor = _ChunkedLoss.apply(self.hidden[where], self.weight, self.bias, targets, self._rows)  # type: ignore[no-untyped-call]
        return result

    @property
    def _rows(self) -> int:
        """Positions of one chunk."""
        return max(1, CHUNK_BYTES // (4 * self.weight.shape[0]))


def scored(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits [positions, vocabulary] the log-probability of each target (fp32), and whether that is the likeliest."""
    logs = logits.float().log_softmax(-1)
    return logs.gather(1, targets[:, None])[:, 0], logs.argmax(-1) == targets


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int) -> Tensor:
        loss = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        for start in range(0, len(targets), rows):
            mine, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            logs = linear(mine, weight, bias).float().log_softmax(-1)
            loss -= logs.gather(1, wanted).sum()
            if gradient is not None:  # softmax - onehot, back through the head
                shares = logs.exp_()
                shares.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=shares.dtype))
                gradient[start : start + rows] = linear(shares.to(hidden.dtype), weight.t())
        ctx.gradient = gradient
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.gradient * gradients[0], None, None, None, None
