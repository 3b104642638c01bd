"""The bank on the architectures people use: random small models, both layouts, every method, exact agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    GemmaConfig,
    GPTNeoXConfig,
    MistralConfig,
    ModernBertConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from petl_ray.bank import Bank, ServingBank
from petl_ray.methods import BottleneckSpec, HeadSpec, LoraSpec
from petl_ray.models import LockedBase
from petl_ray.models.loading import LoadedBase
from petl_ray.spec import Pinned
from tests.bank.rows import rows, trained

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SMALL |= {"vocab_size": 100, "pad_token_id": 0}
CLASSIFIERS = {
    "roberta": RobertaConfig(**SMALL | {"pad_token_id": 1}),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=100),
    "modernbert": ModernBertConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
}
GENERATORS = {
    "mistral": MistralConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma": GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8),  # its RMS norm multiplies by 1 + weight
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "opt": OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
    ),
}


def _loaded(config: Any, task_type: Any) -> LoadedBase:
    torch.manual_seed(0)
    config.num_labels = 2
    kind = AutoModelForCausalLM if task_type == "causal_lm" else AutoModelForSequenceClassification
    model = kind.from_config(config).eval().requires_grad_(False)
    model.config.use_cache = False
    base = LockedBase(pinned=Pinned(uri="memory", digest="ab" * 32), precision="fp32")
    pad, device = int(config.pad_token_id or 0), torch.device("cpu")
    return LoadedBase(base, task_type, model, None, "cd" * 32, 0, device, torch.float32, pad)


@pytest.mark.parametrize("name", [*CLASSIFIERS, *GENERATORS])
def test_slots_train_and_serve_on_it_each_as_if_alone(name: str, tmp_path: Path) -> None:
    causal = name in GENERATORS
    loaded = _loaded((GENERATORS if causal else CLASSIFIERS)[name], "causal_lm" if causal else "classification")
    digest = loaded.weights_digest()
    kinds: list[tuple[Any, int]] = [(LoraSpec(rank=2), 3), (BottleneckSpec(size=4), 5)]
    kinds += [] if causal else [(HeadSpec(), 2)]
    adapters = [trained(loaded, m, 0 if causal else n, tmp_path / str(i), i) for i, (m, n) in enumerate(kinds)]
    bank, serving = Bank(loaded, len(kinds)), ServingBank(loaded, len(kinds))
    for slot, files in enumerate(adapters):
        bank.load(slot, files)
        serving.install(slot, files)
    segments = [rows(slot, 2, 6 + 3 * slot) for slot in range(len(kinds))]
    packed = bank.forward(segments)
    for slot, segment in enumerate(segments):
        with torch.no_grad():
            (alone,) = bank.forward([segment])
        mask = segment.attention_mask.bool()
        expected = alone[mask] if causal else alone  # what stands behind padding is nobody's answer
        beside_others = packed[slot][mask] if causal else packed[slot]
        assert torch.allclose(beside_others, expected, rtol=1e-5, atol=1e-5)
        beside = [other for other in range(len(kinds)) if other != slot]
        ids = torch.cat([segment.input_ids, segment.input_ids[:1].expand(len(beside), -1)])
        masks = torch.cat([segment.attention_mask, segment.attention_mask[:1].expand(len(beside), -1)])
        served = torch.stack(serving.answer([slot, slot, *beside], ids, masks)[:2])
        assert torch.allclose(served[mask] if causal else served, expected, rtol=1e-5, atol=1e-5)
    sum((part.pow(2).mean() for part in packed), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    for slot in range(len(kinds)):
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in bank.parameters(slot).values())
    bank.detach()
    serving.detach()
    assert loaded.weights_digest() == digest
