"""Same question, same name, in every process."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from petl_ray.errors import PlanError
from petl_ray.fingerprint import canonical, fingerprint, sha256_of
from petl_ray.spec import NOT_IDENTITY, OMIT_DEFAULT, Pinned, Spec

PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | some.text(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(), inner, max_size=4),
    max_leaves=12,
)


class Recipe(Spec):
    rate: float = 0.1
    base: Pinned = Pinned(uri="/a", digest="0" * 64)
    cores: Annotated[int, NOT_IDENTITY] = 1


class LaterRecipe(Recipe):
    seeds: Annotated[int, OMIT_DEFAULT] = 1


@given(PLAIN)
def test_a_value_has_one_canonical_form(value: Any) -> None:
    assert canonical(canonical(value)) == canonical(value)
    assert sha256_of(value) == sha256_of(canonical(value))


@given(some.dictionaries(some.text(), some.integers(), min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert sha256_of(value) == sha256_of(dict(reversed(value.items())))


def test_where_it_runs_bears_no_identity() -> None:
    here = Recipe()
    there = Recipe(cores=64, base=Pinned(uri="s3://b/a", digest="0" * 64))
    assert sha256_of(here) == sha256_of(there)
    assert sha256_of(here) != sha256_of(Recipe(rate=0.2))
    assert sha256_of(here) != sha256_of(Recipe(base=Pinned(uri="/a", digest="1" * 64)))


def test_a_field_that_came_later_leaves_old_questions_their_names() -> None:
    assert sha256_of(LaterRecipe()) == sha256_of(LaterRecipe(seeds=1)) == sha256_of(Recipe())
    assert sha256_of(LaterRecipe(seeds=2)) != sha256_of(Recipe())


def test_the_name_of_a_step_is_the_same_in_another_process() -> None:
    code = (
        "from petl_ray.fingerprint import fingerprint; from petl_ray.spec import Pinned;"
        "print(fingerprint({'name': 'train', 'version': 1}, Pinned(uri='x', digest='0' * 64)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == fingerprint({"version": 1, "name": "train"}, Pinned(uri="y", digest="0" * 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, print, b"bytes", {1: 2}])
def test_what_has_no_faithful_name_is_refused(value: Any) -> None:
    with pytest.raises(PlanError):
        sha256_of({"field": value})
