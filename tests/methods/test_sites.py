"""Where adapters sit in the architectures people use, read off skeletons without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from petl_ray.errors import AdapterError
from petl_ray.methods import BottleneckSpec, HeadSpec, Ia3Spec, LoraSpec, count_parameters, lowest_adapted_layer
from petl_ray.methods.sites import anatomy, output_projections, short_names, targeted
from petl_ray.methods.table import METHODS, all_parts

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SMALL |= {"vocab_size": 64, "pad_token_id": 0}


def _skeleton(config: Any, *, causal: bool = False) -> Any:
    with torch.device("meta"):
        return (AutoModelForCausalLM if causal else AutoModelForSequenceClassification).from_config(config)


BERT = BertConfig(**SMALL)
ENCODERS = {
    "bert": (BERT, 12, ["attention.output.dense", "output.dense"], ["classifier"]),
    "roberta": (
        RobertaConfig(**SMALL),
        12,
        ["attention.output.dense", "output.dense"],
        ["classifier.dense", "classifier.out_proj"],
    ),
    "distilbert": (
        DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=64),
        12,
        ["attention.out_lin", "ffn.lin2"],
        ["pre_classifier", "classifier"],
    ),
    "modernbert": (ModernBertConfig(**SMALL), 8, ["attn.Wo", "mlp.Wo"], ["head.dense", "head.norm", "classifier"]),
}  # fmt: skip
DECODERS = {
    "llama": (LlamaConfig(**SMALL), 14, ["self_attn.o_proj", "mlp.down_proj"]),
    "mistral": (MistralConfig(**SMALL), 14, ["self_attn.o_proj", "mlp.down_proj"]),
    "qwen2": (Qwen2Config(**SMALL), 14, ["self_attn.o_proj", "mlp.down_proj"]),
    "qwen3": (Qwen3Config(**SMALL), 14, ["self_attn.o_proj", "mlp.down_proj"]),
    "opt": (OPTConfig(hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                      vocab_size=64), 12, ["self_attn.out_proj", "fc2"]),
    "gpt_neox": (GPTNeoXConfig(**SMALL), 8, ["attention.dense", "mlp.dense_4h_to_h"]),
}  # fmt: skip

MORE = {"gemma": (GemmaConfig(**SMALL),), "phi": (PhiConfig(**SMALL),)}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_shows_its_maps_its_output_projections_and_its_head(name: str) -> None:
    config, linears, outputs, heads = ENCODERS[name]
    found = anatomy(_skeleton(config))
    assert len(found.linears) == linears
    assert [site.name.split(".", 3)[-1] for site in output_projections(found)][:2] == [
        site.name.split(".", 3)[-1] for site in found.linears if site.name.endswith(tuple(outputs))
    ][:2]
    assert len(output_projections(found)) == 4
    assert all(site.name.endswith(tuple(outputs)) for site in output_projections(found))
    assert [site.name for site in found.heads] == heads and found.label == heads[-1]


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_shows_its_maps_and_keeps_its_output_layer_to_itself(name: str) -> None:
    config, linears, outputs = DECODERS[name]
    found = anatomy(_skeleton(config, causal=True))
    assert len(found.linears) == linears and found.heads == () and found.label is None
    assert all(site.name.endswith(tuple(outputs)) for site in output_projections(found))
    assert len(output_projections(found)) == 4
    names = short_names(found, targeted(found, "all-linear"))
    assert not any("lm_head" in part or "embed_out" in part for part in names)


@pytest.mark.parametrize(("targets", "count"), [("attention", 8), ("query_value", 4), ("mlp", 6), ("all-linear", 14)])
def test_named_sets_mean_the_same_everywhere(targets: str, count: int) -> None:
    assert len(targeted(anatomy(_skeleton(LlamaConfig(**SMALL), causal=True)), targets)) == count


IA3_SITES = {  # per layer: outputs scaled, inputs scaled
    "bert": (["attention.self.key", "attention.self.value"], ["output.dense"]),
    "roberta": (["attention.self.key", "attention.self.value"], ["output.dense"]),
    "distilbert": (["attention.k_lin", "attention.v_lin"], ["ffn.lin2"]),
    "modernbert": (["attn.Wqkv"], ["mlp.Wo"]),
    "llama": (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]),
    "mistral": (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]),
    "qwen2": (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]),
    "qwen3": (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]),
    "gemma": (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]),
    "phi": (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.fc2"]),
    "opt": (["self_attn.k_proj", "self_attn.v_proj"], ["fc2"]),
    "gpt_neox": (["attention.query_key_value"], ["mlp.dense_4h_to_h"]),
}


@pytest.mark.parametrize("name", IA3_SITES)
def test_ia3_finds_keys_values_and_the_feed_forwards_last_map_in_every_family(name: str) -> None:
    outer, inner = IA3_SITES[name]
    config = ENCODERS[name][0] if name in ENCODERS else {**DECODERS, **MORE}[name][0]
    found = anatomy(_skeleton(config, causal=name not in ENCODERS))
    parts = METHODS["ia3"].parts(Ia3Spec(), found)
    for role, expected in (("out_scale", outer), ("in_scale", inner)):
        sites = [part.site for part in parts if role in part.shapes]
        assert len(sites) == 2 * len(expected)
        assert {site.name.removeprefix(f"{site.layer}.") for site in sites} == set(expected)
        assert all(part.shapes[role] == (part.site.in_width if role == "in_scale" else part.site.width,)
                   for part in parts if role in part.shapes)  # fmt: skip
    config_file = METHODS["ia3"].config(Ia3Spec(), found)
    read = METHODS["ia3"].parts(METHODS["ia3"].read_config(config_file, found), found)
    assert all(one.same_sum(two) for one, two in zip(parts, read, strict=True))


def test_layers_are_chosen_by_number_and_a_wrong_one_says_how_many_there_are() -> None:
    skeleton = _skeleton(LlamaConfig(**SMALL), causal=True)
    found = anatomy(skeleton)
    upper = METHODS["lora"].parts(LoraSpec(layers=(1,)), found)
    assert len(upper) == 7 and all(part.site.number == 1 for part in upper)
    with pytest.raises(AdapterError, match=r"2 layers\. Choose 0 to 1"):
        METHODS["lora"].parts(LoraSpec(layers=(2,)), found)
    with pytest.raises(AdapterError, match="no targeted module lies there"):
        METHODS["lora"].parts(LoraSpec(targets=("layers.0.mlp.up_proj",), layers=(1,)), found)
    assert METHODS["lora"].config(LoraSpec(targets="query_value", layers=(1,)), found)["layers_to_transform"] == [1]


def test_the_lowest_adapted_layer_is_known_before_anything_is_computed() -> None:
    causal, classifier = _skeleton(LlamaConfig(**SMALL), causal=True), _skeleton(BERT)
    assert lowest_adapted_layer(causal, LoraSpec(layers=(1,))) == 1
    assert lowest_adapted_layer(causal, LoraSpec(targets=("lm_head",))) == 2
    assert lowest_adapted_layer(causal, LoraSpec(targets=("lm_head", "q_proj"))) == 0
    assert lowest_adapted_layer(classifier, HeadSpec()) == 2 and lowest_adapted_layer(classifier, Ia3Spec()) == 0
    assert lowest_adapted_layer(classifier, LoraSpec(targets=("pooler.dense",))) == 2


def test_a_list_of_modules_is_matched_by_suffix_and_a_wrong_name_lists_the_right_ones() -> None:
    found = anatomy(_skeleton(LlamaConfig(**SMALL), causal=True))
    assert len(targeted(found, ("q_proj", "layers.0.mlp.up_proj"))) == 3
    with pytest.raises(AdapterError, match="Choose among down_proj, gate_proj, k_proj"):
        targeted(found, ("query",))


def test_files_name_modules_shortly_only_where_that_is_unambiguous() -> None:
    llama = anatomy(_skeleton(LlamaConfig(**SMALL), causal=True))
    assert short_names(llama, targeted(llama, "query_value")) == ["q_proj", "v_proj"]
    bert = anatomy(_skeleton(BERT))
    assert short_names(bert, targeted(bert, "query_value")) == ["query", "value"]
    assert "bert.encoder.layer.0.output.dense" in short_names(bert, targeted(bert, "all-linear"))


def test_counting_agrees_with_the_formula_and_allocates_nothing() -> None:
    skeleton = _skeleton(BERT)
    head = 32 * 7 + 7
    lora = 2 * (4 * (32 + 32) + 2 * (32 + 48)) * 8
    bottleneck = 4 * (2 * 32 * 16 + 16 + 32) + 4 * 2 * 32
    assert count_parameters(skeleton, HeadSpec(), 7) == head
    assert count_parameters(skeleton, LoraSpec(rank=8), 7) == lora + head
    assert count_parameters(skeleton, BottleneckSpec(size=16), 7) == bottleneck + head


def test_the_default_recipes_stay_below_two_percent_of_minilm(minilm: str) -> None:
    from petl_ray.models import BaseSpec, load_skeleton, resolve

    skeleton = load_skeleton(resolve(BaseSpec(source=minilm, precision="fp32")), "classification")
    for spec in (LoraSpec(), BottleneckSpec(), HeadSpec()):
        assert count_parameters(skeleton, spec, 20) < 0.02 * 22_713_216


def test_a_head_alone_is_refused_where_there_is_none() -> None:
    found = anatomy(_skeleton(LlamaConfig(**SMALL), causal=True))
    with pytest.raises(AdapterError, match="Choose lora, bottleneck or ia3"):
        all_parts(HeadSpec(), found, 0)
    with pytest.raises(AdapterError, match="has no labels"):
        all_parts(LoraSpec(), found, 3)
    with pytest.raises(AdapterError, match="at least two"):
        all_parts(LoraSpec(), anatomy(_skeleton(BERT)), 1)


def test_every_method_of_the_table_answers_to_its_name() -> None:
    assert all(method.kind == kind for kind, method in METHODS.items())
