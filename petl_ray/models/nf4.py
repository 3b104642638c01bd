"""NF4 bases through bitsandbytes (Dettmers et al. 2023), on CPU as on CUDA, and the guard against a weight that moves.

bitsandbytes repacks 4-bit weights in place when an AVX512-BF16 CPU evaluates them, and its `state_dict` undoes that
inexactly: reading the weights changes them. The fast path is therefore switched off layer by layer, and every load
proves that a forward, a reading of all weights and a second forward agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from petl_ray.errors import BaseModelError


def nf4_config(compute_dtype: torch.dtype, keep: Sequence[str]) -> Any:
    """The quantisation config: NF4, double quantisation, computing in `compute_dtype`; modules in `keep` stay whole."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(keep),
    )


def settle(model: nn.Module) -> None:
    """Switch off the in-place repacking of 4-bit weights."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def self_test(model: Any, device: torch.device, source: str) -> None:
    """Prove that reading the weights does not change them; raises BaseModelError if it does."""
    limit = min(8, int(getattr(model.config, "vocab_size", 8)))
    ids = torch.arange(limit, device=device).unsqueeze(0)
    with torch.inference_mode():
        before = model(input_ids=ids).logits.clone()
        model.state_dict()
        after = model(input_ids=ids).logits
    if not torch.equal(before, after):
        drift = float((before - after).abs().max())
        raise BaseModelError(
            source,
            f"its 4-bit weights moved by {drift:.2g} when read",
            "this bitsandbytes repacks them in place",
            "Use quantization: none, or another bitsandbytes",
        )


def parameter_count(model: nn.Module, without: Sequence[str] = ()) -> int:
    """Weights of the model, a 4-bit weight counted once each; children named in `without` are left out."""
    total = 0
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in without:
            continue
        state = getattr(parameter, "quant_state", None)
        total += int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
    return total
