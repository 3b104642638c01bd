"""As on a GPU: slots share products, rows of any length share a pass, optimizers step in lists. Neighbours change rounding
and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from petl_ray.bank import bank
from petl_ray.models import LockedBase
from petl_ray.training import loop
from petl_ray.training.session import Session, open_session
from petl_ray.training.spec import TrainSpec
from tests.training.questions import recipe
from tests.training.test_isolation import beside_the_sick, weights_after
from tests.training.test_optimizer import in_lists
from tests.training.test_rounds import GPU

ROUNDING = 1e-4  # of all of an adapter's weights together, after fifty steps in fp32


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainSpec, int], Session]:
    """Opens sessions that train on a CPU in a GPU's way; no pass goes span by span."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a pass went span by span")

    monkeypatch.setattr(bank, "TrainingLayout", refuse)
    monkeypatch.setattr(loop, "stride", in_lists)
    return lambda spec, slots: open_session(spec, slots, 1, grouped=True, sharing=GPU)


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The relative difference of an adapter's weights."""
    assert set(one) == set(other)
    ours, theirs = (torch.cat([weights[name].flatten() for name in sorted(weights)]) for weights in (one, other))
    return float((ours - theirs).norm() / theirs.norm())


def test_fifty_steps_in_a_crowd_are_fifty_steps_alone_but_for_rounding(
    tiny: tuple[LockedBase, str, Path], as_on_a_gpu: Callable[[TrainSpec, int], Session]
) -> None:
    """Ranks, targets, depths and dropout of their own; neighbours come and go."""
    base, task_type, data = tiny

    def asks(**changes: Any) -> TrainSpec:
        return recipe(base, task_type=task_type, batch_size=2, learning_rate=1e-3, **changes)

    ours = asks(method={"kind": "lora", "rank": 5, "targets": "all-linear", "dropout": 0.1})
    company = [
        (asks(method={"kind": "lora", "rank": 8, "dropout": 0.2}, seed=1), 0, 99),
        (asks(method={"kind": "lora", "rank": 3, "targets": "mlp", "dropout": 0.2}, seed=2), 5, 30),
        (asks(method={"kind": "bottleneck", "size": 8}, seed=3), 10, 40),
        (asks(method={"kind": "lora", "rank": 9, "targets": "query_value", "layers": [1]}, seed=4), 20, 45),
    ]
    session = as_on_a_gpu(ours, 1 + len(company))
    untrained, alone = (weights_after(session, ours, data, turns) for turns in (0, 50))
    beside = weights_after(session, ours, data, 50, company)
    session.close()
    assert (alone["shared"], beside["shared"]) == (0, 50), "everybody is in one pass, turn by turn"
    assert apart(alone["weights"], untrained["weights"]) > 100 * ROUNDING, "there was something to disturb"
    assert apart(beside["weights"], alone["weights"]) <= ROUNDING
    assert beside["predictions"] == alone["predictions"]


def test_who_turns_to_nan_stops_alone_and_its_neighbours_go_on_as_if_it_had_left_in_good_health(
    tiny: tuple[LockedBase, str, Path], as_on_a_gpu: Callable[[TrainSpec, int], Session]
) -> None:
    """It stands in one product with them: two of them are of its own family, one with fewer ranks than itself."""
    base, task_type, data = tiny
    methods: dict[str, dict[str, Any]] = {
        "well": {"kind": "lora", "rank": 3, "dropout": 0.1},
        "like": {"kind": "lora", "rank": 4, "targets": "mlp"},
        "wide": {"kind": "lora", "rank": 9},
        "sick": {"kind": "lora", "rank": 4},
    }
    specs = {
        key: recipe(base, task_type=task_type, method=method, batch_size=2, learning_rate=1e-3, seed=seed)
        for seed, (key, method) in enumerate(methods.items())
    }
    (fallen, ill), (left, well) = (
        beside_the_sick(as_on_a_gpu(specs["well"], len(specs)), specs, data, fell) for fell in (True, False)
    )
    assert [len(segments) for segments in ill] == [4] * 4 + [3] * 4
    assert [len(segments) for segments in well] == [4] * 3 + [3] * 5
    for key in ("well", "like", "wide"):
        assert all(bool(torch.isfinite(value).all()) for value in fallen[key].values())
        assert apart(fallen[key], left[key]) <= ROUNDING
