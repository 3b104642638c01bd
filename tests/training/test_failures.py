"""Failures of training as errors of ours: what they are told as, and what they let go."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from petl_ray.errors import CapacityError, PetlRayError, TemporaryError, TrainingError
from petl_ray.training.failures import as_failure
from petl_ray.training.memory import too_long


class Activations:
    """As large as those of a pass: whoever keeps a failure must not keep these."""


def failed(error: Exception) -> tuple[Exception, weakref.ref[Activations]]:
    """An error as it comes from a pass, with the frames that hold what the pass made."""
    held: list[weakref.ref[Activations]] = []

    def a_pass() -> None:
        made = Activations()
        held.append(weakref.ref(made))
        raise error

    try:
        try:
            a_pass()
        except ValueError as cause:
            raise RuntimeError("shapes do not match") from cause
    except Exception as caught:  # noqa: BLE001 - whatever the test asks for
        return caught, held[0]
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), CapacityError),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), TemporaryError),
        (RuntimeError("shapes do not match"), TrainingError),
        (ValueError("wrapped in another"), TrainingError),
        (TrainingError("moods", "the loss is not finite"), TrainingError),
    ],
    ids=["memory", "device", "unforeseen", "led to another", "ours"],
)
def test_a_failure_has_its_kind_and_keeps_nothing_of_the_pass_that_failed(
    error: Exception, kind: type[PetlRayError]
) -> None:
    caught, made = failed(error)
    assert made() is not None
    ours = as_failure("moods", caught)
    assert type(ours) is kind and ours.what == "moods"
    assert ours is caught or ours.__cause__ is caught, "where it came from can still be told"
    gc.collect()
    assert made() is None
    foreseen = kind is not TrainingError or ours is caught
    notes = getattr(ours, "__notes__", [])
    assert ("a_pass" in "".join(notes)) != foreseen, "for the step's log, where nobody foresaw it"


def test_a_row_that_is_too_long_keeps_nothing_either() -> None:
    caught, made = failed(MemoryError())
    ours = too_long(512, caught)
    gc.collect()
    assert "one row of 512 tokens" in str(ours) and made() is None
