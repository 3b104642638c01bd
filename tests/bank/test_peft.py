"""PEFT as the oracle: the same files, the same logits, the same gradients, in both directions."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from petl_ray.bank import Bank, ServingBank
from petl_ray.methods import LoraSpec, read_adapter
from petl_ray.methods.sites import anatomy, short_names, targeted
from petl_ray.models.loading import LoadedBase
from tests.bank.rows import card, rows, shake, trained

peft = pytest.importorskip("peft")
SPECS = [LoraSpec(rank=4, alpha=10), LoraSpec(rank=3, alpha=6, targets="query_value", rslora=True)]


def _copy(loaded: LoadedBase, labels: int) -> torch.nn.Module:
    model = copy.deepcopy(loaded.model)
    if labels:
        name = anatomy(model).label
        assert name
        old = model.get_submodule(name)
        head = torch.nn.Linear(old.in_features, labels, bias=old.bias is not None)
        model.set_submodule(name, head)
        model.config.num_labels = labels
        model.num_labels = labels
    return model


@pytest.mark.parametrize("spec", SPECS, ids=["all-linear", "query-value-rslora"])
@pytest.mark.parametrize(("base", "labels"), [("bert", 3), ("llama", 0), ("llama_classifier", 4), ("minilm_base", 6)])
def test_peft_loads_our_files_and_gives_our_logits(
    base: str, labels: int, spec: LoraSpec, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    loaded: LoadedBase = request.getfixturevalue(base)
    files = trained(loaded, spec, labels, tmp_path, seed=3)
    theirs = peft.PeftModel.from_pretrained(_copy(loaded, labels), tmp_path).eval()
    batch = rows(0, 4, 9)
    with torch.no_grad():
        expected = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        plain = _copy(loaded, labels)(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    bank, serving = Bank(loaded, 1), ServingBank(loaded, 1)
    bank.load(0, files)
    serving.install(0, files)
    with torch.no_grad():
        (ours,) = bank.forward([batch])
    served = torch.stack(serving.answer([0] * 4, batch.input_ids, batch.attention_mask))
    bank.detach()
    serving.detach()
    assert not torch.allclose(expected, plain, atol=1e-2)
    assert (ours - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert (served - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("base", "labels"), [("bert", 3), ("llama", 0), ("minilm_base", 6)])
def test_one_step_has_pefts_gradients(base: str, labels: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    loaded: LoadedBase = request.getfixturevalue(base)
    files = trained(loaded, SPECS[0], labels, tmp_path, seed=4)
    theirs = peft.PeftModel.from_pretrained(_copy(loaded, labels), tmp_path, is_trainable=True).eval()
    batch = rows(0, 4, 9)
    theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.pow(2).mean().backward()
    bank = Bank(loaded, 1)
    bank.load(0, files)
    bank.forward([batch])[0].pow(2).mean().backward()
    expected = {
        name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert expected.keys() == bank.parameters(0).keys()
    for name, parameter in bank.parameters(0).items():
        gradient = expected[name]
        assert parameter.grad is not None and gradient is not None
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name
    bank.detach()


def test_an_adapter_made_by_peft_is_read_and_answers_alike(bert: LoadedBase, tmp_path: Path) -> None:
    spec = LoraSpec(rank=5, alpha=10, targets="attention")
    found = anatomy(bert.model)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=5,
        lora_alpha=10,
        target_modules=short_names(found, targeted(found, "attention")),
        modules_to_save=["classifier"],
    )
    theirs = peft.get_peft_model(_copy(bert, 3), config).eval()
    shake((p for p in theirs.parameters() if p.requires_grad), seed=1)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "card.json").write_text(card(bert, spec, 3).model_dump_json())
    files = read_adapter(tmp_path, bert)
    bank, batch = Bank(bert, 1), rows(0, 3, 7)
    bank.load(0, files)
    with torch.no_grad():
        (ours,) = bank.forward([batch])
        expected = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert torch.allclose(ours, expected, atol=1e-5)
    bank.detach()
