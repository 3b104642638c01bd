"""Neighbours change nothing: an adapter trained in any company has the bits it has alone, on encoders and decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from petl_ray.bank import Segment
from petl_ray.models import BaseSpec, LockedBase, load_base, resolve
from petl_ray.training.session import Session, open_session
from petl_ray.training.sharing import Sharing
from petl_ray.training.spec import TrainSpec
from tests.plainstep import PlainStep
from tests.training.passes import passes_of
from tests.training.questions import dataset, locked, recipe

Company = Sequence[tuple[TrainSpec, int, int]]  # neighbours: what they train, the turns they come at and leave at

METHODS = some.one_of(
    some.builds(
        lambda rank, targets, dropout: {"kind": "lora", "rank": rank, "targets": targets, "dropout": dropout},
        some.integers(1, 9),
        some.sampled_from(["query_value", "attention", "mlp", "all-linear"]),
        some.sampled_from([0.0, 0.2]),
    ),
    some.builds(lambda size: {"kind": "bottleneck", "size": size}, some.integers(1, 8)),
    some.just({"kind": "head"}),
    some.just({"kind": "lora", "rank": 3, "targets": "all-linear", "layers": [1]}),
    some.just({"kind": "ia3"}),
)
CHANGES = some.fixed_dictionaries(
    {
        "method": METHODS,
        "batch_size": some.sampled_from([1, 2, 4, 8]),
        "seed": some.integers(0, 3),
        "learning_rate": some.sampled_from([1e-3, 1e-2]),
        "weight_decay": some.sampled_from([0.0, 0.1]),
        "gradient_clip": some.sampled_from([None, 0.1, 1.0]),
    }
)


def weights_after(session: Session, spec: TrainSpec, data: Path, turns: int, company: Company = ()) -> dict[str, Any]:
    """The weights of `spec` after `turns` turns beside a company that comes and goes, what they predict, and how many
    passes were shared."""
    session.admit("it", spec, data)
    session.aim("it", 1.0)
    with passes_of(session) as passes:
        for turn in range(turns):
            for at, (neighbour, comes, leaves) in enumerate(company):
                if turn == leaves:
                    session.drop(f"n{at}")
                if turn == comes:
                    session.admit(f"n{at}", neighbour, data)
                    session.aim(f"n{at}", 1.0)
            assert not session.turn().failed
    it = session.occupant("it")
    found = {
        "weights": session._bank.state(it.slot),
        "predictions": [score.prediction for score in it._score_validation(512)],
        "shared": sum(len(segments) > 1 for segments in passes),
    }
    for key in ["it", *(f"n{at}" for at, (_, comes, leaves) in enumerate(company) if comes < turns <= leaves)]:
        session.drop(key)
    return found


def beside_the_sick(
    session: Session, specs: Mapping[str, TrainSpec], data: Path, ill: bool
) -> tuple[dict[str, dict[str, torch.Tensor]], list[list[Segment]]]:
    """Everybody's weights but those of "sick" after eight turns, and their passes. Before the fourth "sick" turns to NaN,
    or leaves in good health."""
    for key, spec in specs.items():
        session.admit(key, spec, data)
        session.aim(key, 1.0)
    with passes_of(session) as passes:
        for turn in range(8):
            if turn == 3 and ill:
                for parameter in session._bank.parameters(session.occupant("sick").slot).values():
                    parameter.data.fill_(float("nan"))
            if turn == 3 and not ill:
                session.drop("sick")
            assert not session.turn().failed
    if ill:
        assert session.occupant("sick").diverged and session.occupant("sick").step == 3
    weights = {key: session._bank.state(session.occupant(key).slot) for key in specs if key != "sick"}
    session.close()
    return weights, passes


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_has_the_same_bits_in_any_company(tiny: tuple[LockedBase, str, Path]) -> None:
    base, task_type, data = tiny
    shared: list[int] = []

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        mine=CHANGES,
        theirs=some.lists(some.tuples(CHANGES, some.integers(0, 4), some.integers(2, 6)), min_size=1, max_size=3),
    )
    def holds(mine: dict[str, Any], theirs: list[tuple[dict[str, Any], int, int]]) -> None:
        if task_type == "causal_lm":
            mine, theirs = _with_weights(mine), [(_with_weights(change), *when) for change, *when in theirs]
        spec = recipe(base, task_type=task_type, **mine)
        company = [
            (recipe(base, task_type=task_type, **change), comes, max(comes + 1, leaves))
            for change, comes, leaves in theirs
        ]
        session = open_session(spec, 1 + len(company), 1)
        alone = weights_after(session, spec, data, 6)
        beside = weights_after(session, spec, data, 6, company)
        session.close()
        shared.append(beside["shared"])
        assert equal(alone["weights"], beside["weights"])

    holds()
    if Sharing.of(load_base(base, task_type)).shared:
        assert sum(shared) > 0, "whoever is always alone has the bits that it has alone"


def _with_weights(change: dict[str, Any]) -> dict[str, Any]:
    """A language model has no head to train alone."""
    return change if change["method"]["kind"] != "head" else {**change, "method": {"kind": "lora", "rank": 2}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_of_minilm_in_a_crowd_are_fifty_steps_alone(minilm: str, root: PlainStep, precision: str) -> None:
    base = resolve(BaseSpec.model_validate({"source": minilm, "precision": precision}))
    data = root.fetch(dataset(root, rows=90))
    ours = recipe(base, method={"kind": "lora", "rank": 5, "targets": "all-linear", "dropout": 0.1}, batch_size=2)
    company = [
        (recipe(base, method={"kind": "lora", "rank": 8}, batch_size=2, seed=1), 0, 99),
        (recipe(base, method={"kind": "lora", "rank": 3, "targets": "mlp"}, batch_size=2, seed=2), 5, 30),
        (recipe(base, method={"kind": "bottleneck", "size": 8}, batch_size=2, seed=3), 10, 40),
    ]
    session = open_session(ours, 4, 1)
    alone = weights_after(session, ours, data, 50)
    beside = weights_after(session, ours, data, 50, company)
    if Sharing.of(session.loaded).shared:
        assert beside["shared"] > 25, "most turns share a pass"
    assert equal(alone["weights"], beside["weights"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_of_a_decoder_in_a_crowd_are_fifty_steps_alone(
    tiny_llama: Path, root: PlainStep, precision: str
) -> None:
    base, data = locked(tiny_llama, precision), root.fetch(dataset(root, rows=120, causal=True))

    def asks(**changes: Any) -> TrainSpec:
        return recipe(base, task_type="causal_lm", batch_size=2, **changes)

    ours = asks(method={"kind": "lora", "rank": 5, "targets": "all-linear", "dropout": 0.1})
    company = [
        (asks(method={"kind": "lora", "rank": 8}, seed=1), 0, 99),
        (asks(method={"kind": "lora", "rank": 3, "targets": "mlp", "dropout": 0.2}, seed=2), 5, 30),
        (asks(method={"kind": "ia3"}, seed=3), 10, 40),
    ]
    session = open_session(ours, 4, 1)
    alone, beside = weights_after(session, ours, data, 50), weights_after(session, ours, data, 50, company)
    if Sharing.of(session.loaded).shared:
        assert beside["shared"] > 25, "most turns share a pass"
    session.close()
    assert equal(alone["weights"], beside["weights"])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_packed_base_shares_its_passes_and_no_bit_changes(
    kind: str, precision: str, tiny_bert: Path, tiny_llama: Path, root: PlainStep
) -> None:
    causal = kind == "decoder"
    base = locked(tiny_llama if causal else tiny_bert, precision, "nf4")
    task_type, data = "causal_lm" if causal else "classification", root.fetch(dataset(root, rows=60, causal=causal))

    def asks(**changes: Any) -> TrainSpec:
        return recipe(base, task_type=task_type, batch_size=2, **changes)

    spec = asks(method={"kind": "lora", "rank": 5, "targets": "all-linear", "dropout": 0.1})
    company = [
        (asks(method={"kind": "lora", "rank": 3}, seed=1), 0, 99),
        (asks(method={"kind": "bottleneck", "size": 3}, seed=2), 1, 6),
        (asks(method={"kind": "ia3"}, seed=3), 2, 99),
    ]
    session = open_session(spec, 4, 1)
    alone, beside = weights_after(session, spec, data, 10), weights_after(session, spec, data, 10, company)
    if Sharing.of(session.loaded).shared:
        assert beside["shared"] > 4
    session.close()
    assert equal(alone["weights"], beside["weights"])


def test_what_is_not_finite_stays_where_it_is(tiny: tuple[LockedBase, str, Path]) -> None:
    """A neighbour that turns to NaN stops alone; the rest have the bits they have where it stopped in good health."""
    base, task_type, data = tiny
    methods = {"well": {"kind": "lora", "rank": 3}, "sick": {"kind": "lora", "rank": 4, "targets": "all-linear"}}
    specs = {key: recipe(base, task_type=task_type, method=one, batch_size=2) for key, one in methods.items()}
    fallen, left = (beside_the_sick(open_session(specs["well"], 2, 1), specs, data, ill)[0] for ill in (True, False))
    assert equal(fallen["well"], left["well"])
    assert all(torch.isfinite(value).all() for value in fallen["well"].values())


@pytest.fixture
def root(tmp_path: Path) -> PlainStep:
    return PlainStep(tmp_path)
