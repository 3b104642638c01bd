"""Overrides: dotted paths laid over a Spec, which judges what comes of it."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from petl_ray.spec import Spec, with_overrides


class Lora(Spec):
    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)
    alpha: float = 16.0


class Bottleneck(Spec):
    kind: Literal["bottleneck"] = "bottleneck"
    size: int = Field(default=32, ge=1)


class Recipe(Spec):
    method: Annotated[Lora | Bottleneck, Field(discriminator="kind")] = Lora(rank=4)
    warmup: Lora | None = None
    rate: float = Field(default=0.1, gt=0)


def test_a_path_sets_one_field_and_leaves_the_others() -> None:
    assert with_overrides(Recipe(), {"method.alpha": 2, "rate": 0.2}) == Recipe(method=Lora(rank=4, alpha=2), rate=0.2)
    assert with_overrides(Recipe(), {}) == Recipe()


def test_another_kind_begins_at_its_own_defaults_whatever_the_order() -> None:
    overrides = {"method.kind": "bottleneck", "method.size": 8, "rate": 0.5}
    for order in itertools.permutations(overrides.items()):
        assert with_overrides(Recipe(), dict(order)) == Recipe(method=Bottleneck(size=8), rate=0.5)
    assert with_overrides(Recipe(), {"method.kind": "bottleneck"}).method == Bottleneck()


def test_the_same_kind_keeps_the_fields_that_stand() -> None:
    assert with_overrides(Recipe(), {"method.kind": "lora", "method.alpha": 2}).method == Lora(rank=4, alpha=2)


def test_what_was_left_out_may_be_begun() -> None:
    assert with_overrides(Recipe(), {"warmup.rank": 2}).warmup == Lora(rank=2)


def test_a_mapping_and_a_field_in_it_may_be_set_together_and_the_callers_value_stays() -> None:
    given: dict[str, Any] = {"method.alpha": 3, "method": {"kind": "lora", "rank": 1}}
    assert with_overrides(Recipe(), given).method == Lora(rank=1, alpha=3)
    assert given["method"] == {"kind": "lora", "rank": 1}


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        ("method.rnak", 1, ("method", "lora", "rnak")),
        ("mehtod.rank", 1, ("mehtod",)),
        ("rate.deep", 1, ("rate",)),
        ("method.size", 8, ("method", "lora", "size")),
        ("method.rank", 0, ("method", "lora", "rank")),
        ("method.kind", "lorra", ("method",)),
    ],
)
def test_the_spec_refuses_what_it_does_not_have(path: str, value: object, place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        with_overrides(Recipe(), {path: value})
    (error,) = caught.value.errors()
    assert error["loc"] == place
