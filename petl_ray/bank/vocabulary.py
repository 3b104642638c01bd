"""The frozen language-model head by itself, so that a loss can go over a large vocabulary piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petl_ray.bank.wiring import in_force
from petl_ray.models.loading import LoadedBase

PROBE_TOKENS = 4
HIGHEST_PROBE = 200.0  # far beyond where a soft cap bends


@dataclass(frozen=True)
class FrozenHead:
    """logits = hidden · weightᵀ + bias: weight [vocabulary, width], bias [vocabulary] or None, in the base's type."""

    weight: Tensor
    bias: Tensor | None


@torch.no_grad()
def frozen_head(loaded: LoadedBase) -> FrozenHead | None:
    """The head of a causal language model whose logits are exactly its head's answer to its last hidden state, else None.

    It is tried out: the model must hand its last hidden state to the head, and give on what the head answers as it is,
    with no soft cap, scale or offset of its own.
    """
    model: Any = loaded.model
    head = model.get_output_embeddings() if loaded.task_type == "causal_lm" else None
    if type(head) is not nn.Linear or model.base_model is model:
        return None
    given: list[Tensor] = []
    answer = torch.linspace(-HIGHEST_PROBE, HIGHEST_PROBE, head.out_features, device=loaded.device)
    answer = answer.to(loaded.compute_dtype).expand(1, PROBE_TOKENS, -1)

    def swap(_: nn.Module, args: tuple[Any, ...], __: Tensor) -> Tensor:
        given.append(args[0])
        return answer

    ids = torch.arange(PROBE_TOKENS, device=loaded.device).remainder(head.out_features).unsqueeze(0)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    hook = head.register_forward_hook(swap)
    try:
        with in_force(None):
            logits = model(**batch).logits
            hidden = model.base_model(**batch)[0]
    finally:
        hook.remove()
    handed_on = len(given) == 1 and given[0].shape == hidden.shape and torch.allclose(given[0], hidden, rtol=1e-3)
    if not (handed_on and torch.equal(logits.to(answer.dtype), answer)):
        return None
    return FrozenHead(head.weight, head.bias)
