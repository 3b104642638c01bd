"""Whether a pass may begin in the middle of a model is tried out on it; where its layers talk otherwise it may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from petl_ray.bank.prefix import FrozenPrefix, States
from petl_ray.bank.wiring import in_force
from petl_ray.methods.sites import anatomy

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
ENCODERS = ["Bert", "Roberta", "DebertaV2", "Deberta", "Electra", "ModernBert", "DistilBert"]
DECODERS = ["Llama", "Qwen3", "Mistral", "Gemma2", "Phi", "GPTNeoX", "OPT"]


class Loaded:
    """What a prefix reads of a loaded base."""

    def __init__(self, family: str, kind: str) -> None:
        torch.manual_seed(0)
        more: dict[str, Any] = {"num_labels": 3} if kind == "SequenceClassification" else {"head_dim": 16}
        if family in ("Llama", "Qwen3", "Mistral", "Gemma2"):
            more["num_key_value_heads"] = 2
        config = getattr(transformers, f"{family}Config")(**{**SMALL, **more})
        self.model = getattr(transformers, f"{family}For{kind}")(config).eval()
        self.device, self.compute_dtype = torch.device("cpu"), torch.float32
        self.task_type = "causal_lm" if kind == "CausalLM" else "classification"


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "SequenceClassification") for family in ENCODERS), *((family, "CausalLM") for family in DECODERS)],
)
def test_a_pass_behind_any_layer_gives_what_a_whole_pass_gives_or_is_refused(family: str, kind: str) -> None:
    loaded: Any = Loaded(family, kind)
    found = anatomy(loaded.model)
    prefix = FrozenPrefix(loaded, found)
    ids = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad(), in_force(None):
        whole = loaded.model(input_ids=ids, attention_mask=mask).logits
        for depth in range(1, found.layers + 1):
            if not prefix.holds(depth):
                assert family in ("DebertaV2", "Deberta"), f"{family} has one plain stack"
                continue
            states = States(depth, prefix.states(depth, ids, mask, {}))
            with prefix.resumed(states):
                behind = loaded.model(input_ids=ids, attention_mask=mask).logits
            rows = mask.bool() if loaded.task_type == "causal_lm" else slice(None)
            torch.testing.assert_close(behind[rows], whole[rows], rtol=1e-4, atol=1e-5)
        again = loaded.model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(again, whole), "the model is as it was"
