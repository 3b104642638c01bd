"""Adapter files from hostile hands: every case refused, nothing else disturbed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from petl_ray.errors import AdapterError
from petl_ray.methods import AdapterCard, Ia3Spec, LoraSpec, read_adapter, write_adapter
from petl_ray.methods.parts import first_value
from petl_ray.methods.sites import anatomy
from petl_ray.methods.table import all_parts
from petl_ray.models import BaseSpec, load_base, resolve
from petl_ray.models.loading import LoadedBase

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "card.json"


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> LoadedBase:
    return load_base(resolve(BaseSpec(source=str(tiny_bert), precision="fp32")), "classification", device="cpu")


@pytest.fixture
def adapter(base: LoadedBase, tmp_path: Path) -> Path:
    spec, found = LoraSpec(rank=2), anatomy(base.model)
    tensors = {
        name: first_value(name, tuple(part.shapes[role]), part.init[role], 1, None)
        for part in all_parts(spec, found, 3)
        for role, name in part.names().items()
    }
    card = AdapterCard(
        task="t",
        task_type="classification",
        labels=("a", "b", "c"),
        max_length=32,
        base=base.digest,
        precision="fp32",
        tokenizer=base.tokenizer_digest,
        method=spec,
    )
    write_adapter(tmp_path / "adapter", tensors, found, card)
    return tmp_path / "adapter"


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda path: _edit(path / CONFIG, changes)


def _card(**changes: Any) -> Callable[[Path], None]:
    return lambda path: _edit(path / CARD, changes)


def _edit(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path / WEIGHTS)
        change(tensors)
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})

    return apply


def _pickled(path: Path) -> None:
    (path / WEIGHTS).unlink()
    (path / "adapter_model.bin").write_bytes(pickle.dumps({"weights": [1]}))


def _cut(path: Path) -> None:
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-100])


def _padded(path: Path) -> None:
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes() + b"\0" * 100)


def _overlap(path: Path) -> None:
    """Two tensors that claim the same bytes, in a file of the right length."""
    raw = (path / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    names = [name for name in header if name.endswith("lora_A.weight")][:2]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]
    text = json.dumps(header).encode()
    (path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


FIRST = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
BASE_WEIGHT = "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight"
EMBEDDING = "base_model.model.bert.embeddings.word_embeddings.weight"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut off": (_cut, "bytes"),
    "weights with a tail": (_padded, "bytes"),
    "weights empty": (lambda path: (path / WEIGHTS).write_bytes(b""), "cut off"),
    "header longer than the file": (lambda path: (path / WEIGHTS).write_bytes(b"\xff" * 64), "cut off"),
    "header that is no JSON": (lambda path: (path / WEIGHTS).write_bytes(b"\x04" + b"\0" * 7 + b"oops"), "no JSON"),
    "tensors that share bytes": (_overlap, "do not match its header"),
    "weights missing": (lambda path: (path / WEIGHTS).unlink(), "cannot be read"),
    "weights pickled": (_pickled, "pickle"),
    "pickle beside good weights": (lambda path: (path / "x.pkl").write_bytes(b"x"), "pickle"),
    "NaN": (_tensors(lambda t: t[FIRST].fill_(float("nan"))), "NaN"),
    "infinity": (_tensors(lambda t: t[FIRST][0].fill_(float("inf"))), "infinite"),
    "a tensor missing": (_tensors(lambda t: t.pop(FIRST)), "lacks"),
    "an embedding smuggled in": (
        _tensors(lambda t: t.update({EMBEDDING: torch.zeros(3, 3)})),
        "no tensor of that name",
    ),
    "a base weight smuggled in": (
        _tensors(lambda t: t.update({BASE_WEIGHT: torch.zeros(64, 64)})),
        "no tensor of that name",
    ),
    "another shape": (_tensors(lambda t: t.update({FIRST: torch.zeros(4, 64)})), "is expected"),
    "integers": (_tensors(lambda t: t.update({FIRST: torch.zeros(2, 64, dtype=torch.int32)})), "got type I32"),
    "a giant tensor": (_tensors(lambda t: t.update({FIRST: torch.zeros(3_000_000)})), "at most"),
    "config: rank 200000": (_config(r=200_000), "no longer a small adapter"),
    "config: rank differs": (_config(r=4), "another adapter than card"),
    "config: alpha 1e9": (_config(lora_alpha=1e9), "drowns the base"),
    "config: alpha differs": (_config(lora_alpha=17), "another adapter than card"),
    "config: layer replication": (_config(layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
    "config: rank pattern": (_config(rank_pattern={"query": 64}), "rank_pattern"),
    "config: megatron": (_config(megatron_config={"x": 1}), "megatron_config"),
    "config: pissa": (_config(init_lora_weights="pissa"), "init_lora_weights"),
    "config: DoRA": (_config(use_dora=True), "use_dora"),
    "config: unknown key": (_config(run_this="rm"), "no such key"),
    "config: another method": (_config(peft_type="IA3"), "peft_type"),
    "config: backbone as module to save": (_config(modules_to_save=["classifier", "embeddings"]), "modules_to_save"),
    "config: unknown targets": (_config(target_modules=["nowhere"]), "no linear map"),
    "config: targets as a pattern": (_config(target_modules=".*"), "list of module names"),
    "config: other targets": (_config(target_modules=["query"]), "another adapter than card"),
    "config: a layer there is not": (_config(layers_to_transform=[7]), "2 layers"),
    "config: other layers": (_config(layers_to_transform=[1]), "layers_to_transform|another adapter than card"),
    "config: layers as text": (_config(layers_to_transform="0"), "layers"),
    "config: other task type": (_config(task_type="CAUSAL_LM"), "task_type"),
    "config: no JSON": (lambda path: (path / CONFIG).write_text("{"), "no JSON"),
    "config: a key twice": (lambda path: (path / CONFIG).write_text('{"r": 1, "r": 2}'), "twice"),
    "config: deep nesting": (lambda path: (path / CONFIG).write_text("[" * 100_000), "no JSON"),
    "card: missing": (lambda path: (path / CARD).unlink(), "cannot be read"),
    "card: another base": (_card(base="0" * 64), "made for base"),
    "card: another task type": (_card(task_type="causal_lm", labels=[]), "the base was loaded for"),
    "card: more labels than the head": (_card(labels=["a", "b", "c", "d"]), "is expected"),
    "card: a label twice": (_card(labels=["a", "a", "b"]), "twice"),
    "card: unknown key": (_card(code="x"), "Extra inputs"),
    "card: a huge rank": (_card(method={"kind": "lora", "rank": 10**9}), "rank"),
}  # fmt: skip


def test_a_good_adapter_is_read_bit_for_bit(base: LoadedBase, adapter: Path) -> None:
    files = read_adapter(adapter, base)
    stored = load_file(adapter / WEIGHTS)
    assert {f"base_model.model.{name}" for name in files.tensors} == set(stored)
    assert all(torch.equal(value, stored[f"base_model.model.{name}"]) for name, value in files.tensors.items())


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_adapter_is_refused_in_one_sentence(case: str, base: LoadedBase, adapter: Path) -> None:
    harm, message = HOSTILE[case]
    harm(adapter)
    before = base.weights_digest()
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter(adapter, base)
    assert len(str(caught.value)) < 700 and base.weights_digest() == before


def test_hostile_adapters_leave_served_neighbours_alone(base: LoadedBase, adapter: Path, tmp_path: Path) -> None:
    from petl_ray.bank import ServingBank

    serving = ServingBank(base, 2)
    serving.install(0, read_adapter(adapter, base))
    ids = torch.arange(5, 29).reshape(3, 8)
    before = torch.stack(serving.answer([0] * 3, ids, torch.ones_like(ids)))
    for number, (harm, _) in enumerate(HOSTILE.values()):
        copy = Path(shutil.copytree(adapter, tmp_path / str(number)))
        harm(copy)
        with pytest.raises(AdapterError):
            serving.install(1, read_adapter(copy, base))
    assert torch.equal(torch.stack(serving.answer([0] * 3, ids, torch.ones_like(ids))), before)
    serving.detach()


IA3 = Ia3Spec()
IA3_HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "config: another method": (_config(peft_type="LORA"), "peft_type"),
    "config: unknown key": (_config(rank=3), "no such key"),
    "config: feed-forward as a pattern": (_config(feedforward_modules=".*"), "list of module names"),
    "config: feed-forward beside the targets": (_config(feedforward_modules=["query"]), "targets do not name"),
    "config: inputs instead of outputs": (_config(feedforward_modules=[]), "another adapter than card"),
    "config: transposed weights": (_config(fan_in_fan_out=True), "fan_in_fan_out"),
    "a vector lying down": (
        _tensors(lambda t: t.update({name: v.T.contiguous() for name, v in t.items() if name.endswith("key.ia3_l")})),
        "is expected",
    ),
    "infinity": (_tensors(lambda t: next(iter(t.values())).fill_(float("inf"))), "infinite"),
    "card: a LoRA": (_card(method={"kind": "lora", "rank": 2}), "peft_type"),
}


@pytest.mark.parametrize("case", IA3_HOSTILE)
def test_a_hostile_ia3_is_refused_in_one_sentence(case: str, base: LoadedBase, tmp_path: Path) -> None:
    found = anatomy(base.model)
    parts = all_parts(IA3, found, 3)
    tensors = {name: torch.ones(part.shapes[role]) for part in parts for role, name in part.names().items()}
    card = AdapterCard(task="t", task_type="classification", labels=("a", "b", "c"), max_length=32, base=base.digest,
                       precision="fp32", tokenizer=base.tokenizer_digest, method=IA3)  # fmt: skip
    write_adapter(tmp_path, tensors, found, card)
    assert read_adapter(tmp_path, base).tensors.keys() == tensors.keys()
    shapes = {tuple(value.shape) for name, value in load_file(tmp_path / WEIGHTS).items() if "ia3" in name}
    assert shapes == {(64, 1), (1, 128)}
    harm, message = IA3_HOSTILE[case]
    harm(tmp_path)
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path, base)
