"""How long a row may be: models that learn a vector for every position have no more of them than they learned."""

from __future__ import annotations

from torch import nn

from petl_ray.errors import PlanError

_NAMES = ("position_embeddings", "wpe", "embed_positions")  # of BERT's kin, GPT-2's and OPT's


def most_tokens(model: nn.Module) -> int | None:
    """Tokens of the longest row; None where positions are computed (rotary, relative), which nothing bounds."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _NAMES:
            padding = module.padding_idx
            before = getattr(module, "offset", 0 if padding is None else padding + 1)  # RoBERTa begins behind padding
            return int(module.num_embeddings - before)
    return None


def refuse_longer(model: nn.Module, max_length: int) -> None:
    """Raise PlanError where rows may have more tokens than the model has positions."""
    most = most_tokens(model)
    if most is not None and max_length > most:
        raise PlanError("max_length", f"got {max_length}", f"this base has {most} positions", f"Choose at most {most}")
