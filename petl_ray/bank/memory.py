"""What one training slot takes, roughly, before it is paid for."""

from __future__ import annotations

from typing import Any

from petl_ray.methods.table import count_parameters
from petl_ray.models.loading import LoadedBase

STATE_BYTES = 4 * 4  # fp32: parameter, gradient and AdamW's two moments


def memory_estimate(loaded: LoadedBase, method: Any, labels: int, tokens: int) -> int:
    """Bytes of one slot beside the base: state of its parameters, and activations of `tokens` tokens in one step.

    Kept per token and layer are about ten vectors of the hidden width, four of the feed-forward width and one row of
    attention scores per head (rows of 128 tokens), in the base's type; a language model adds its logits and their
    gradient in fp32. Against what autograd was measured to keep for 256 and 1,024 tokens this is 1.5 to 1.8 times as
    much on MiniLM (room for what the backward pass takes on top), and 0.6 to 2 times on a Llama of 260 thousand
    parameters, whose heads are only 8 wide.
    """
    config = loaded.model.config
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    width = loaded.compute_dtype.itemsize
    activations = tokens * layers * width * (10 * hidden + 4 * wide + heads * 128)
    logits = tokens * int(config.vocab_size) * 8 if loaded.task_type == "causal_lm" else 0
    return count_parameters(loaded.model, method, labels) * STATE_BYTES + activations + logits
