"""Bases in memory: frozen, verified, quiet."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from petl_ray.errors import BaseModelError, CapacityError, CorruptionError
from petl_ray.models import BaseSpec, LockedBase, choose_device, load_base, load_skeleton, memory_free_bytes, resolve
from petl_ray.models import loading as loading_module
from petl_ray.models import nf4 as nf4_module


def _lock(path: Path | str, **more: str) -> LockedBase:
    return resolve(BaseSpec.model_validate({"source": str(path), "precision": "fp32", **more}))


def test_a_base_comes_frozen_in_evaluation_mode_and_without_a_word(
    tiny_bert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    loaded = load_base(_lock(tiny_bert), "classification", device="cpu")
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    head = sum(p.numel() for p in loaded.model.classifier.parameters())
    assert loaded.parameters == sum(p.numel() for p in loaded.model.parameters()) - head


def test_two_loads_hold_the_same_bits(tiny_bert: Path) -> None:
    one, two = (load_base(_lock(tiny_bert), "classification", device="cpu") for _ in range(2))
    assert one.weights_digest() == two.weights_digest()
    with torch.no_grad():
        next(two.model.parameters())[0, 0] += 1e-3
    assert one.weights_digest() != two.weights_digest()


def test_bytes_that_changed_since_the_lock_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    locked = _lock(copy)
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.LayerNorm.bias"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptionError, match="the plan was locked with"):
        load_base(locked, "classification", device="cpu")


def test_a_checkpoint_that_lacks_frozen_weights_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    weights = load_file(copy / "model.safetensors")
    del weights["pooler.dense.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"pooler\.dense\.weight.*they would be random"):
        load_base(_lock(copy), "classification", device="cpu")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), CapacityError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), CapacityError),
        (torch.AcceleratorError("CUDA error: unknown error"), torch.AcceleratorError),
        (RuntimeError("size mismatch for model.embed_tokens.weight"), BaseModelError),
    ],
    ids=str,
)
def test_memory_that_runs_out_and_a_broken_device_are_no_fault_of_the_base(
    tiny_llama: Path, error: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_pretrained(*_: object, **__: object) -> None:
        raise error

    found = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(loading_module, "_auto_class", lambda task_type: found)
    with pytest.raises(raised) as told:
        load_base(_lock(tiny_llama), "causal_lm", device="cpu")
    assert type(told.value) is raised


def test_an_encoder_without_a_language_head_is_refused_for_causal_tasks(tiny_bert: Path) -> None:
    with pytest.raises(BaseModelError):
        load_base(_lock(tiny_bert), "causal_lm", device="cpu")


def test_a_skeleton_has_the_shapes_and_no_weights(tiny_llama: Path) -> None:
    locked = _lock(tiny_llama)
    skeleton, loaded = load_skeleton(locked, "causal_lm"), load_base(locked, "causal_lm", device="cpu")
    shapes = {name: p.shape for name, p in skeleton.named_parameters()}
    assert all(p.is_meta for p in skeleton.parameters())
    assert shapes == {name: p.shape for name, p in loaded.model.named_parameters()}


def test_bf16_on_a_cpu_takes_explicit_attention_and_stays_near_fp32(tiny_bert: Path) -> None:
    exact = load_base(_lock(tiny_bert), "classification", device="cpu")
    short = load_base(_lock(tiny_bert, precision="bf16"), "classification", device="cpu")
    assert short.compute_dtype == torch.bfloat16 and short.model.config._attn_implementation == "eager"
    ids = torch.arange(5, 25).reshape(2, 10)
    hidden = [base.model.bert(input_ids=ids).last_hidden_state.float() for base in (exact, short)]
    assert (hidden[0] - hidden[1]).abs().max() < 0.1


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(CapacityError, match="no CUDA device"):
        choose_device("cuda")
    assert 2**20 < memory_free_bytes() < 2**50


def test_an_nf4_base_keeps_its_bits_through_forwards_and_readings(tiny_llama: Path) -> None:
    loaded = load_base(_lock(tiny_llama, quantization="nf4"), "causal_lm", device="cpu")
    assert type(loaded.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert type(loaded.model.lm_head) is torch.nn.Linear
    plain = load_base(_lock(tiny_llama), "causal_lm", device="cpu")
    assert loaded.parameters == plain.parameters
    before = loaded.weights_digest()
    ids = torch.arange(4, 24).reshape(2, 10)
    first = loaded.model(input_ids=ids).logits
    for _ in range(3):
        loaded.model.state_dict()
        assert torch.equal(loaded.model(input_ids=ids).logits, first)
    assert loaded.weights_digest() == before


def test_an_nf4_base_answers_as_its_dequantised_weights_do(tiny_llama: Path) -> None:
    import bitsandbytes.functional as bnb

    loaded = load_base(_lock(tiny_llama, quantization="nf4"), "causal_lm", device="cpu")
    reference = load_base(_lock(tiny_llama), "causal_lm", device="cpu")
    for name, parameter in loaded.model.named_parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            reference.model.get_parameter(name).data.copy_(bnb.dequantize_4bit(parameter.data, state))
    ids = torch.arange(4, 24).reshape(2, 10)
    with torch.inference_mode():
        difference = loaded.model(input_ids=ids).logits - reference.model(input_ids=ids).logits
    assert difference.abs().max() < 1e-5


def test_the_nf4_self_test_catches_weights_that_move(tiny_llama: Path) -> None:
    loaded = load_base(_lock(tiny_llama, quantization="nf4"), "causal_lm", device="cpu")
    layer = loaded.model.model.layers[0].mlp.up_proj
    plain = layer.state_dict

    def corrupting(*args: object, **kwargs: object) -> object:
        layer.weight.quant_state.absmax += 1
        return plain(*args, **kwargs)

    loaded.model.state_dict = corrupting
    with pytest.raises(BaseModelError, match="4-bit weights moved"):
        nf4_module.self_test(loaded.model, loaded.device, "tiny")
