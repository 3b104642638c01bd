"""PEFT as the oracle: the same files, the same logits, the same gradients, in both directions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from petl_ray.bank import Bank, ServingBank
from petl_ray.methods import Ia3Spec, LoraSpec, read_adapter
from petl_ray.methods.sites import anatomy, short_names, targeted
from petl_ray.models.loading import LoadedBase
from tests.bank.rows import card, rows, shake, trained

peft = pytest.importorskip("peft")
SPECS: dict[str, Any] = {
    "all-linear": LoraSpec(rank=4, alpha=10),
    "query-value-rslora": LoraSpec(rank=3, alpha=6, targets="query_value", rslora=True),
    "one layer, short names": LoraSpec(rank=3, targets="query_value", layers=(1,)),
    "one layer, full names": LoraSpec(rank=3, targets="all-linear", layers=(0,)),
    "ia3": Ia3Spec(),
    "ia3, keys and values": Ia3Spec(targets="key_value"),
}


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


def peft_model(loaded: LoadedBase, labels: int, directory: Path) -> Any:
    """The base with the adapter that lies in `directory`, as PEFT makes it."""
    return peft.PeftModel.from_pretrained(_copy(loaded, labels), directory).eval()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("base", "labels"), [("bert", 3), ("llama", 0), ("llama_classifier", 4), ("minilm_base", 6)])
def test_peft_loads_our_files_and_gives_our_logits(
    base: str, labels: int, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    loaded: LoadedBase = request.getfixturevalue(base)
    files = trained(loaded, SPECS[name], labels, tmp_path, seed=3)
    theirs = peft_model(loaded, labels, tmp_path)
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
    assert len(files.tensors) == sum(p.numel() > 0 for n, p in theirs.named_parameters() if _adapted(n))
    assert (ours - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert (served - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def _adapted(name: str) -> bool:
    """Whether a parameter of a PeftModel belongs to the adapter or to its head."""
    return any(part in name for part in ("lora_", "ia3_", "modules_to_save"))


@pytest.mark.parametrize("name", ["all-linear", "ia3"])
@pytest.mark.parametrize(("base", "labels"), [("bert", 3), ("llama", 0), ("minilm_base", 6)])
def test_one_step_has_pefts_gradients(
    base: str, labels: int, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    loaded: LoadedBase = request.getfixturevalue(base)
    files = trained(loaded, SPECS[name], labels, tmp_path, seed=4)
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
        gradient = gradient.reshape(parameter.shape)  # IA3's vectors are columns and rows in PEFT
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name
    bank.detach()


def _foreign(name: str, loaded: LoadedBase) -> tuple[Any, Any]:
    """A configuration as a user of PEFT writes it, and the spec it stands for."""
    found = anatomy(loaded.model)
    common = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    if name == "lora":
        targets = short_names(found, targeted(found, "attention"))
        lora = peft.LoraConfig(r=5, lora_alpha=10, target_modules=targets, **common)
        return lora, LoraSpec(rank=5, alpha=10, targets="attention")
    if name == "lora on one layer":
        lora = peft.LoraConfig(r=5, lora_alpha=10, target_modules=["query", "key"], layers_to_transform=1, **common)
        return lora, LoraSpec(rank=5, alpha=10, targets=("key", "query"), layers=(1,))
    # PEFT's own choice for BERT: "output.dense" stands for the attention's output projection as well
    ia3 = peft.IA3Config(**common)
    return ia3, Ia3Spec(targets=("key", "value", "output.dense"), feedforward=("output.dense",))


def assert_peft_made_answers_alike(loaded: LoadedBase, labels: int, config: Any, spec: Any, directory: Path) -> None:
    """What PEFT makes of a base by `config` and saves with weights that are not the first ones is read as `spec`; both
    layouts then give PEFT's logits at every token that is there."""
    theirs, batch = peft.get_peft_model(_copy(loaded, labels), config).eval(), rows(0, 3, 7)
    adapter = [value for name, value in theirs.named_parameters() if _adapted(name) and value.numel()]
    shake(adapter, seed=1)
    theirs.save_pretrained(directory)
    (directory / "card.json").write_text(card(loaded, spec, labels).model_dump_json())
    files = read_adapter(directory, loaded)
    assert len(files.tensors) == len(adapter)
    bank, serving = Bank(loaded, 1), ServingBank(loaded, 1)
    bank.load(0, files)
    serving.install(0, files)
    with torch.no_grad():
        (ours,) = bank.forward([batch])
        expected = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    served = torch.stack(serving.answer([0] * 3, batch.input_ids, batch.attention_mask))
    bank.detach()
    serving.detach()
    there = slice(None) if labels else batch.attention_mask.bool()
    within = 1e-5 * max(1.0, float(expected[there].abs().max()))
    assert (ours - expected)[there].abs().max() <= within and (served - expected)[there].abs().max() <= within


@pytest.mark.parametrize("name", ["lora", "lora on one layer", "ia3 as PEFT chooses"])
def test_an_adapter_made_by_peft_is_read_and_answers_alike(name: str, bert: LoadedBase, tmp_path: Path) -> None:
    assert_peft_made_answers_alike(bert, 3, *_foreign(name, bert), tmp_path)
