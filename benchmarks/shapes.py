"""Bases by shape alone: random weights made on the device from a configuration, no hub and no files; NF4 where asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from petl_ray.models import LoadedBase, LockedBase
from petl_ray.models.device import DTYPES
from petl_ray.models.nf4 import parameter_count, settle
from petl_ray.spec import Pinned

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Shape:
    """`family` is bert (a classification) or llama (a language model)."""

    family: str
    hidden: int
    layers: int
    heads: int
    groups: int
    wide: int
    vocabulary: int


SHAPES = {
    "MiniLM": Shape("bert", 384, 6, 12, 12, 1536, 30522),
    "1B Llama": Shape("llama", 2048, 16, 32, 8, 8192, 128256),
    "8B Llama": Shape("llama", 4096, 32, 32, 8, 14336, 128256),
    "tiny BERT": Shape("bert", 64, 2, 4, 4, 128, 512),
    "tiny Llama": Shape("llama", 64, 2, 4, 2, 128, 512),
}


def base(name: str, precision: Precision, nf4: bool = False, device: str = "cpu", seed: int = 0) -> LoadedBase:
    """A frozen base of that shape, in evaluation mode; equal arguments give equal weights."""
    shape, dtype, where = SHAPES[name], DTYPES[precision], torch.device(device)
    torch.manual_seed(seed)
    with torch.device(where):
        model = _model(shape, dtype, where).to(dtype)
    model.requires_grad_(False).eval()
    model.config.use_cache = False
    model.config.pad_token_id = 0
    if nf4:
        quantize(model, dtype, where)
    return _loaded(shape, model, precision, nf4, where)


def quantize(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Turn every linear map inside the layers into NF4 with double quantisation, in place; heads stay whole."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or ".layers." not in name:
            continue
        packed = bnb.nn.Linear4bit(
            module.in_features, module.out_features, module.bias is not None, compute_dtype=dtype,
            compress_statistics=True, quant_type="nf4", device="meta",
        )  # fmt: skip
        packed.weight = bnb.nn.Params4bit(
            module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=packed
        )
        packed.bias = module.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, packed.to(device))
    settle(model)


def dequantized(loaded: LoadedBase) -> LoadedBase:
    """The same numbers as plain weights: what an NF4 base must agree with."""
    from bitsandbytes.functional import dequantize_4bit

    shape = next(one for one in SHAPES.values() if _fits(one, loaded))
    plain = _model(shape, loaded.compute_dtype, loaded.device).to(loaded.device, loaded.compute_dtype)
    weights = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            state = getattr(weights[name], "quant_state", None)
            value = weights[name] if state is None else dequantize_4bit(weights[name].data, state)
            parameter.copy_(value)
    plain.requires_grad_(False).eval()
    plain.config.use_cache = False
    return _loaded(shape, plain, loaded.base.precision, False, loaded.device)


def _model(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.wide,
        "vocab_size": shape.vocabulary,
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # a model of 8B parameters is never held in fp32
    try:
        if shape.family == "bert":
            return BertForSequenceClassification(BertConfig(**sizes, num_labels=4))
        config = LlamaConfig(
            **sizes, num_key_value_heads=shape.groups, max_position_embeddings=32768, tie_word_embeddings=True,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def _loaded(shape: Shape, model: Any, precision: Precision, nf4: bool, device: torch.device) -> LoadedBase:
    pinned = Pinned(uri="shape:random", digest="0" * 64)
    head = ["classifier"] if shape.family == "bert" else []
    return LoadedBase(
        base=LockedBase(pinned=pinned, precision=precision, quantization="nf4" if nf4 else "none"),
        task_type="classification" if shape.family == "bert" else "causal_lm",
        model=model,
        tokenizer=None,
        tokenizer_digest="",
        parameters=parameter_count(model, without=head),
        device=device,
        compute_dtype=DTYPES[precision],
        pad_id=0,
    )


def _fits(shape: Shape, loaded: LoadedBase) -> bool:
    config = loaded.model.config
    found = (config.hidden_size, config.num_hidden_layers, config.vocab_size)
    return found == (shape.hidden, shape.layers, shape.vocabulary) and config.model_type == shape.family
