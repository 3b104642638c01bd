"""Errors cross processes whole and say what, found, why, do."""

from __future__ import annotations

import pickle

import pytest

from petl_ray import errors
from petl_ray.errors import PetlRayError, TemporaryError

FAMILY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PetlRayError)]


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_with_all_its_parts(kind: type[PetlRayError]) -> None:
    error = kind("training.method.rank", "got 0", "a LoRA of rank 0 learns nothing", "Choose 1 or more", row=3)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "training.method.rank: got 0; a LoRA of rank 0 learns nothing. Choose 1 or more."
    assert again.extra == {"row": 3}


def test_a_temporary_error_says_when_to_try_again() -> None:
    assert pickle.loads(pickle.dumps(TemporaryError("store", delay_s=3.5))).delay_s == 3.5


def test_every_exit_code_is_not_zero() -> None:
    assert all(kind.exit_code for kind in FAMILY)
