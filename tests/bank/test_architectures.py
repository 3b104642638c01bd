"""The bank on the architectures people use: random small models, both layouts, every method, exact agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CohereConfig,
    DistilBertConfig,
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from petl_ray.bank import Bank, Segment, ServingBank
from petl_ray.errors import AdapterError
from petl_ray.methods import BottleneckSpec, HeadSpec, Ia3Spec, LoraSpec
from petl_ray.methods.sites import anatomy, short_names, targeted
from petl_ray.models import LockedBase
from petl_ray.models.loading import LoadedBase
from petl_ray.models.products import linear
from petl_ray.spec import Pinned
from tests.bank.rows import rows, trained
from tests.bank.test_peft import assert_peft_made_answers_alike, peft, peft_model

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SMALL |= {"vocab_size": 100, "pad_token_id": 0}
CLASSIFIERS = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL | {"pad_token_id": 1}),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=100),
    "modernbert": ModernBertConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
}
GENERATORS = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma": GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8),  # its RMS norm multiplies by 1 + weight
    "phi": PhiConfig(**SMALL),  # its output layer has a bias
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
    loaded, causal = _base(name)
    digest = loaded.weights_digest()
    kinds: list[tuple[Any, int]] = [(LoraSpec(rank=2), 3), (BottleneckSpec(size=4), 5), (Ia3Spec(), 4)]
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


def _base(name: str) -> tuple[LoadedBase, bool]:
    causal = name in GENERATORS
    return _loaded((GENERATORS if causal else CLASSIFIERS)[name], "causal_lm" if causal else "classification"), causal


def _losses(bank: Bank, segments: list[Segment], causal: bool, steps: int) -> list[list[float]]:
    """Per step the loss of each slot, each on rows of its own, all in one pass."""
    optimizers = [torch.optim.AdamW(bank.parameters(s.slot).values(), lr=1e-2) for s in segments]
    history = []
    for _ in range(steps):
        losses = []
        for logits, segment in zip(bank.forward(segments), segments, strict=True):
            ids = segment.input_ids
            targets = ids[:, 1:].flatten() if causal else torch.arange(len(ids)) % 2
            losses.append(F.cross_entropy(logits[:, :-1].flatten(0, 1) if causal else logits, targets))
        torch.autograd.backward(losses)
        for optimizer, segment in zip(optimizers, segments, strict=True):
            optimizer.step()
            bank.flat(segment.slot).gradients.zero_()
        history.append([float(loss.detach()) for loss in losses])
    return history


@pytest.mark.parametrize("name", [*CLASSIFIERS, *GENERATORS])
def test_adapters_learn_on_it_span_by_span_and_grouped_alike(name: str) -> None:
    loaded, causal = _base(name)
    methods = [LoraSpec(rank=4), LoraSpec(rank=2, targets="attention"), LoraSpec(rank=4, layers=(1,)), Ia3Spec()]
    histories = []
    for grouped in (False, True):
        bank = Bank(loaded, len(methods), grouped=grouped)
        for slot, method in enumerate(methods):
            bank.fill(slot, method, 0 if causal else 2, seed=slot)
        segments = [rows(slot, 4, 8) for slot in range(len(methods))]
        histories.append(torch.tensor(_losses(bank, segments, causal, 12)))
        bank.detach()
    assert torch.allclose(histories[0][:2], histories[1][:2], atol=1e-4)
    for history in histories:
        first, best = history[0], history.min(0).values
        assert bool((best[:3] < 0.98 * first[:3]).all()), "every LoRA learns"
        assert bool(best[3] < first[3]), "so does IA3, whose vectors move less in so few steps"


@pytest.mark.parametrize(
    "method", [LoraSpec(rank=3), LoraSpec(rank=2, layers=(1,)), Ia3Spec()], ids=["lora", "layer", "ia3"]
)
@pytest.mark.parametrize("name", [*CLASSIFIERS, *GENERATORS])
def test_peft_loads_its_adapters_and_gives_the_same_logits(name: str, method: Any, tmp_path: Path) -> None:
    loaded, causal = _base(name)
    labels = 0 if causal else 3
    files = trained(loaded, method, labels, tmp_path, seed=3)
    theirs, batch = peft_model(loaded, labels, tmp_path), rows(0, 3, 7)
    bank = Bank(loaded, 1)
    bank.load(0, files)
    with torch.no_grad():
        (ours,) = bank.forward([batch])
        expected = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    bank.detach()
    mask = batch.attention_mask.bool()
    ours, expected = (ours[mask], expected[mask]) if causal else (ours, expected)
    assert (ours - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", [*CLASSIFIERS, *GENERATORS])
def test_an_adapter_that_peft_has_made_on_it_is_read_and_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    loaded, causal = _base(name)
    found = anatomy(loaded.model)
    config = peft.LoraConfig(
        r=5,
        lora_alpha=10,
        target_modules=short_names(found, targeted(found, "query_value")),
        task_type="CAUSAL_LM" if causal else "SEQ_CLS",
        modules_to_save=list(found.head_modules) or None,
    )
    spec = LoraSpec(rank=5, alpha=10, targets="query_value")
    assert_peft_made_answers_alike(loaded, 0 if causal else 3, config, spec, tmp_path)


@pytest.mark.parametrize("name", GENERATORS)
def test_hidden_states_and_the_frozen_head_make_the_logits(name: str) -> None:
    loaded, _ = _base(name)
    bank = Bank(loaded, 2)
    bank.fill(0, LoraSpec(rank=2), 0, seed=1)
    bank.fill(1, LoraSpec(rank=3, targets="attention"), 0, seed=2)
    segments = [rows(0, 2, 7), rows(1, 3, 5)]
    hidden, logits = bank.forward(segments, hidden=True), bank.forward(segments)
    for slot, (before, after) in enumerate(zip(hidden, logits, strict=True)):
        head = bank.frozen_head(slot)
        assert head is not None and not head.weight.requires_grad
        assert before.requires_grad and before.shape == (*after.shape[:2], 32)
        assert torch.equal(linear(before, head.weight, head.bias), after)
    bank.detach()


@pytest.mark.parametrize("kind", [Gemma2Config, GraniteConfig, CohereConfig])
def test_a_model_that_does_more_than_its_head_says_so(kind: Any) -> None:
    """Gemma 2 caps its logits softly, Granite and Cohere scale them."""
    extra = {"head_dim": 8} if kind is Gemma2Config else {"logits_scaling": 8.0} if kind is GraniteConfig else {}
    loaded = _loaded(kind(**SMALL, num_key_value_heads=2, **extra), "causal_lm")
    bank = Bank(loaded, 1)
    bank.fill(0, LoraSpec(rank=2), 0, seed=1)
    assert bank.frozen_head(0) is None
    bank.detach()


def test_a_slot_that_adapts_the_head_has_no_frozen_one() -> None:
    loaded, _ = _base("llama")
    bank, classifier = Bank(loaded, 2), Bank(_base("bert")[0], 1)
    bank.fill(0, LoraSpec(targets=("lm_head",)), 0, seed=1)
    bank.fill(1, LoraSpec(), 0, seed=1)
    classifier.fill(0, HeadSpec(), 2, seed=1)
    assert bank.frozen_head(0) is None and bank.frozen_head(1) is not None and classifier.frozen_head(0) is None
    with pytest.raises(AdapterError, match="its heads belong to the slots"):
        classifier.forward([rows(0, 2, 4)], hidden=True)
    bank.detach()
    classifier.detach()
