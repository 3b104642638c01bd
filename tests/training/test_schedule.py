"""The learning rate over the horizon."""

from __future__ import annotations

import math

import pytest
import torch

from petl_ray.training.schedule import rate_factor


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_rises_to_the_full_rate_and_every_step_counts(schedule: str) -> None:
    factors = [rate_factor(step, 100, 0.1, schedule) for step in range(100)]  # type: ignore[arg-type]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1.0
    assert all(0 < factor <= 1 for factor in factors)
    after = factors[10:]
    assert after == sorted(after, reverse=True)


def test_linear_decay_equals_that_of_torch() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=50)
    for step in range(50):
        assert rate_factor(step, 50, 0.0, "linear") == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        decay.step()


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rate_factor(50, 100, 0.0, "cosine") == pytest.approx(0.5)
    assert rate_factor(25, 100, 0.0, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_one_step_is_taken_at_the_full_rate() -> None:
    assert rate_factor(0, 1, 0.0, "linear") == 1.0
    assert rate_factor(0, 1, 1.0, "linear") == 1.0
