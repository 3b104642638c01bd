"""What may be asked of a method, and how a mistake reads."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from petl_ray.fingerprint import sha256_of
from petl_ray.methods import BottleneckSpec, HeadSpec, LoraSpec, MethodSpec

PARSE: TypeAdapter[LoraSpec | BottleneckSpec | HeadSpec] = TypeAdapter(MethodSpec)


def test_the_words_of_peft_are_understood() -> None:
    spec = LoraSpec.model_validate({"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"]})
    assert spec == LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))
    assert sha256_of(spec) == sha256_of(LoraSpec(rank=4, alpha=8.0, targets=("v_proj", "q_proj", "q_proj")))


def test_a_spec_survives_json() -> None:
    for spec in (LoraSpec(targets=("q_proj",)), LoraSpec(), BottleneckSpec(), HeadSpec()):
        assert PARSE.validate_json(spec.model_dump_json()) == spec


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
        ({"kind": "bottleneck", "size": 0}, "lets nothing through"),
        ({"kind": "bottleneck", "activation": "swish"}, "gelu"),
        ({"kind": "loraa"}, "lora"),
    ],
)
def test_a_wrong_value_says_what_is_wrong_and_what_to_do(value: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PARSE.validate_python(value)
