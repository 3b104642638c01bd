"""The serving layout: every row its own adapter, whatever stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from petl_ray.bank import Bank, ServingBank
from petl_ray.errors import AdapterError
from petl_ray.methods import BottleneckSpec, HeadSpec, Ia3Spec, LoraSpec
from petl_ray.methods.table import METHODS
from petl_ray.models.loading import LoadedBase
from tests.bank.rows import card, rows, shake, trained
from tests.bank.test_training import _Scaling

KINDS: list[tuple[Any, int]] = [
    (LoraSpec(rank=4), 3),
    (BottleneckSpec(size=8), 5),
    (HeadSpec(), 2),
    (LoraSpec(rank=9, targets="attention"), 7),
    (BottleneckSpec(size=4, activation="relu"), 4),
    (Ia3Spec(), 3),
    (Ia3Spec(targets="feedforward"), 2),
]


def _adapters(loaded: LoadedBase, directory: Path) -> list[Any]:
    kinds = [(m, n) for m, n in KINDS if loaded.task_type == "classification" or m.kind != "head"]
    labels = loaded.task_type == "classification"
    return [trained(loaded, m, n if labels else 0, directory / str(i), seed=i) for i, (m, n) in enumerate(kinds)]


@pytest.mark.parametrize("base", ["bert", "llama", "llama_classifier"])
def test_a_mixed_batch_answers_each_row_as_its_adapter_alone(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    loaded: LoadedBase = request.getfixturevalue(base)
    adapters = _adapters(loaded, tmp_path)
    serving = ServingBank(loaded, len(adapters))
    for slot, files in enumerate(adapters):
        serving.install(slot, files)
    batch = rows(0, 3 * len(adapters), 9)
    slots = [slot for slot in range(len(adapters)) for _ in range(3)]
    order = torch.randperm(len(slots), generator=torch.Generator().manual_seed(1)).tolist()
    mixed = serving.answer([slots[i] for i in order], batch.input_ids, batch.attention_mask)
    bank = Bank(loaded, 1)
    for slot, files in enumerate(adapters):
        mine = [place for place, i in enumerate(order) if slots[i] == slot]
        single = serving.answer([slot] * 3, batch.input_ids[mine], batch.attention_mask[mine])
        bank.load(0, files)
        with torch.no_grad():
            (reference,) = bank.forward([type(batch)(0, batch.input_ids[mine], batch.attention_mask[mine])])
        bank.free(0)
        for row, place in enumerate(mine):
            assert mixed[place].shape == reference[row].shape
            assert torch.allclose(mixed[place], single[row], rtol=1e-5, atol=1e-5)
            assert torch.allclose(mixed[place], reference[row], rtol=1e-5, atol=1e-5)
    serving.detach()
    bank.detach()


def test_plain_rows_beside_adapters_get_the_plain_base(llama: LoadedBase, tmp_path: Path) -> None:
    batch = rows(0, 8, 8)
    plain = llama.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    serving = ServingBank(llama, 6)
    for slot, files in enumerate(_adapters(llama, tmp_path)):
        serving.install(slot, files)
    mixed = serving.answer([None, 0, None, 1, 2, None, 4, 5], batch.input_ids, batch.attention_mask)
    for row in (0, 2, 5):
        assert torch.allclose(mixed[row], plain[row], rtol=1e-5, atol=1e-5)
    for row in (1, 3, 4, 6, 7):
        assert not torch.allclose(mixed[row], plain[row], atol=1e-3)
    serving.detach()


def test_a_plain_row_of_a_classifier_has_no_labels(bert: LoadedBase, tmp_path: Path) -> None:
    serving = ServingBank(bert, 1)
    serving.install(0, trained(bert, LoraSpec(), 3, tmp_path))
    batch = rows(0, 2, 5)
    answers = serving.answer([0, None], batch.input_ids, batch.attention_mask)
    assert [tuple(row.shape) for row in answers] == [(3,), (0,)]
    serving.detach()


def test_installing_and_clearing_leave_the_neighbours_answers_alone(bert: LoadedBase, tmp_path: Path) -> None:
    adapters = _adapters(bert, tmp_path)
    serving = ServingBank(bert, 3)
    serving.install(0, adapters[0])
    batch = rows(0, 4, 7)
    before = serving.answer([0] * 4, batch.input_ids, batch.attention_mask)
    for files in adapters * 2:  # larger ranks, more labels, other methods: the stacks grow and are reused
        serving.install(1, files)
        serving.install(2, files)
        mixed = serving.answer([0, 1, 0, 2], batch.input_ids, batch.attention_mask)
        assert torch.allclose(mixed[0], before[0], atol=1e-6) and torch.allclose(mixed[2], before[2], atol=1e-6)
        serving.clear(2)
    again = ServingBank(bert, 1)
    again.install(0, adapters[-1])
    alone = again.answer([0] * 4, batch.input_ids, batch.attention_mask)
    grown = serving.answer([1] * 4, batch.input_ids, batch.attention_mask)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, grown, strict=True))
    serving.detach()
    again.detach()


def test_an_empty_slot_is_an_error_never_the_base(bert: LoadedBase, tmp_path: Path) -> None:
    serving = ServingBank(bert, 2)
    serving.install(0, trained(bert, HeadSpec(), 3, tmp_path))
    batch = rows(0, 1, 4)
    with pytest.raises(AdapterError, match="no adapter is installed"):
        serving.answer([1], batch.input_ids, batch.attention_mask)
    serving.clear(0)
    with pytest.raises(AdapterError, match="no adapter is installed"):
        serving.answer([0], batch.input_ids, batch.attention_mask)
    serving.detach()


def test_a_rank_above_the_limit_is_refused(bert: LoadedBase, tmp_path: Path) -> None:
    serving = ServingBank(bert, 1, max_rank=4)
    with pytest.raises(AdapterError, match="serves at most 4"):
        serving.install(0, trained(bert, LoraSpec(rank=8), 3, tmp_path))
    serving.detach()


def test_scales_are_served_and_do_not_touch_neighbours_without_them(
    bert: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(bert, LoraSpec(rank=4), 3, tmp_path / "plain", seed=1)
    serving = ServingBank(bert, 2)
    serving.install(0, plain)
    batch = rows(0, 2, 6)
    before = serving.answer([0, 0], batch.input_ids, batch.attention_mask)
    monkeypatch.setitem(METHODS, "lora", _Scaling())
    bank = Bank(bert, 1)
    bank.fill(0, LoraSpec(rank=4), 3, seed=2)
    shake(bank.parameters(0).values())
    bank.export(0, tmp_path / "scaled", card(bert, LoraSpec(rank=4), 3))
    from petl_ray.methods import read_adapter

    serving.install(1, read_adapter(tmp_path / "scaled", bert))
    mixed = serving.answer([0, 1], batch.input_ids, batch.attention_mask)
    with torch.no_grad():
        (reference,) = bank.forward([type(batch)(0, batch.input_ids, batch.attention_mask)])
    assert torch.allclose(mixed[0], before[0], atol=1e-6)
    assert torch.allclose(mixed[1], reference[1], rtol=1e-5, atol=1e-5)
    serving.detach()
    bank.detach()


def test_bf16_answers_stay_near_the_training_layouts(tiny_bert: Path, tmp_path: Path) -> None:
    from tests.bank.conftest import _load

    loaded = _load(tiny_bert, "classification", precision="bf16")
    files = trained(loaded, LoraSpec(rank=4), 3, tmp_path)
    serving, bank, batch = ServingBank(loaded, 1), Bank(loaded, 1), rows(0, 4, 8)
    serving.install(0, files)
    bank.load(0, files)
    with torch.no_grad():
        (reference,) = bank.forward([batch])
    answers = torch.stack(serving.answer([0] * 4, batch.input_ids, batch.attention_mask))
    assert answers.dtype == torch.float32 and (answers - reference).abs().max() < 0.05
    serving.detach()
    bank.detach()


def test_an_nf4_base_is_the_same_after_twenty_adapters_came_and_went(llama_nf4: LoadedBase, tmp_path: Path) -> None:
    adapters = [
        trained(llama_nf4, LoraSpec(rank=4), 0, tmp_path / "a", seed=1),
        trained(llama_nf4, BottleneckSpec(size=4), 0, tmp_path / "b", seed=2),
    ]
    digest, batch = llama_nf4.weights_digest(), rows(0, 3, 6)
    serving = ServingBank(llama_nf4, 2)
    serving.install(0, adapters[0])
    before = serving.answer([0, None, 0], batch.input_ids, batch.attention_mask)
    for turn in range(20):
        serving.install(1, adapters[turn % 2])
        serving.answer([0, 1, None], batch.input_ids, batch.attention_mask)
        serving.clear(1)
        llama_nf4.model.state_dict()
    after = serving.answer([0, None, 0], batch.input_ids, batch.attention_mask)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert llama_nf4.weights_digest() == digest
    serving.detach()


def test_an_nf4_base_trains_an_adapter_as_its_dequantised_weights_do(llama_nf4: LoadedBase, tiny_llama: Path) -> None:
    import bitsandbytes.functional as bnb

    from tests.bank.conftest import _load

    plain = _load(tiny_llama, "causal_lm")
    for name, parameter in llama_nf4.model.named_parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            plain.model.get_parameter(name).data.copy_(bnb.dequantize_4bit(parameter.data, state))
    gradients = []
    for loaded in (llama_nf4, plain):
        bank = Bank(loaded, 1)
        bank.fill(0, LoraSpec(rank=4), 0, seed=1)
        shake(bank.parameters(0).values())
        bank.forward([rows(0, 3, 6)])[0].pow(2).mean().backward()
        gradients.append([p.grad for p in bank.parameters(0).values()])
        bank.detach()
    for one, two in zip(*gradients, strict=True):
        assert one is not None and two is not None and torch.allclose(one, two, rtol=1e-4, atol=1e-6)
