"""What may be asked of a method, and how a mistake reads."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from petl_ray.fingerprint import sha256_of
from petl_ray.methods import BottleneckSpec, HeadSpec, Ia3Spec, LoraSpec, MethodSpec

PARSE: TypeAdapter[LoraSpec | Ia3Spec | BottleneckSpec | HeadSpec] = TypeAdapter(MethodSpec)


def test_the_words_of_peft_are_understood() -> None:
    spec = LoraSpec.model_validate({"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"]})
    assert spec == LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))
    assert sha256_of(spec) == sha256_of(LoraSpec(rank=4, alpha=8.0, targets=("v_proj", "q_proj", "q_proj")))


def test_a_spec_survives_json() -> None:
    ia3 = Ia3Spec(targets=("v_proj", "down_proj"), feedforward=("down_proj",))
    lora = LoraSpec(targets=("q_proj",), layers=(3, 1))
    for spec in (lora, LoraSpec(), ia3, Ia3Spec(), BottleneckSpec(), HeadSpec()):
        assert PARSE.validate_json(spec.model_dump_json()) == spec


def test_a_lora_on_all_layers_is_the_question_it_was_before_layers_could_be_chosen() -> None:
    before = {"kind": "lora", "rank": 8, "alpha": 16.0, "targets": "all-linear", "dropout": 0.0, "rslora": False}
    assert LoraSpec().identity() == before and LoraSpec(layers=None).model_dump(mode="json") == before
    assert sha256_of(LoraSpec()) == sha256_of(before)
    chosen = LoraSpec.model_validate({"layers_to_transform": [2, 0, 2]})
    assert chosen.layers == (0, 2) and chosen.model_dump(mode="json") == {**before, "layers": [0, 2]}
    assert len({sha256_of(spec) for spec in (LoraSpec(), chosen, LoraSpec(layers=(0, 1)))}) == 3


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    assert LoraSpec(rank=16, alpha=16).scale == 1.0
    assert LoraSpec(rank=16, alpha=16, rslora=True).scale == 4.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "lora", "rank": 0}, "got 0; a LoRA of rank 0 learns nothing. Choose 1 or more."),
        ({"kind": "lora", "rank": 100000}, "no longer a small adapter"),
        ({"kind": "lora", "alpha": 0}, "switched off"),
        ({"kind": "lora", "alpha": 1e9}, "drowns the base"),
        ({"kind": "lora", "dropout": 1.0}, "below 1"),
        ({"kind": "lora", "targets": "attn"}, "the named sets are attention, query_value"),
        ({"kind": "lora", "targets": []}, "Name at least one module"),
        ({"kind": "lora", "targets": ["../x"]}, "no module name"),
        ({"kind": "lora", "rank": 4, "r": 4}, "Extra inputs"),
        ({"kind": "lora", "layers": []}, "leave it out for all"),
        ({"kind": "lora", "layers": [-1]}, "count from 0"),
        ({"kind": "ia3", "targets": "attention"}, "the named sets are key_value_feedforward, key_value"),
        ({"kind": "ia3", "feedforward": ["fc2"]}, "which knows its own"),
        ({"kind": "ia3", "targets": ["v_proj"], "feedforward": ["fc2"]}, "Name it there too"),
        ({"kind": "bottleneck", "size": 0}, "lets nothing through"),
        ({"kind": "bottleneck", "activation": "swish"}, "gelu"),
        ({"kind": "loraa"}, "lora"),
    ],
)
def test_a_wrong_value_says_what_is_wrong_and_what_to_do(value: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PARSE.validate_python(value)
