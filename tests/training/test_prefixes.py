"""A pass that begins behind the frozen prefix: the same adapter to rounding, the same bits in any company, less work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from petl_ray.bank import Bank
from petl_ray.models import load_base
from petl_ray.training import prefixes, rounds
from petl_ray.training.session import open_session
from petl_ray.training.sharing import Sharing
from petl_ray.training.spec import TrainSpec
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe
from tests.training.test_rounds import GPU

HEAD: dict[str, Any] = {"kind": "head"}
UPPER: dict[str, Any] = {"kind": "lora", "rank": 2, "targets": "all-linear", "layers": [1]}
WHOLE: dict[str, Any] = {"kind": "lora", "rank": 2, "targets": "all-linear"}
CASES = [("encoder", HEAD, 2), ("encoder", UPPER, 1), ("decoder", UPPER, 1)]


@pytest.fixture
def made(tmp_path: Path, tiny_bert: Path, tiny_llama: Path) -> Any:
    """The question of a kind of base and a method, and where its rows lie."""

    def make(kind: str, method: dict[str, Any], **changes: Any) -> tuple[TrainSpec, Path]:
        causal = kind == "decoder"
        step = PlainStep(tmp_path / kind)
        base = locked(tiny_llama if causal else tiny_bert)
        task_type = "causal_lm" if causal else "classification"
        return recipe(base, method=method, task_type=task_type, **changes), step.fetch(dataset(step, causal=causal))

    return make


class Work:
    """Weights and metrics of a training, and how many rows went through the lowest layer."""

    def __init__(self, spec: TrainSpec, data: Path) -> None:
        session = open_session(spec, 1, 1)
        self.rows = 0
        modules = session.loaded.model.named_modules()
        lowest = next(module for name, module in modules if name.endswith((".layer.0", ".layers.0")))
        hook = next(lowest.children()).register_forward_pre_hook(self._count, with_kwargs=True)
        session.admit("it", spec, data)
        self.depth = session.occupant("it").frozen_depth
        self.metrics = session.advance({"it": 1.0})["it"]
        self.weights = session._bank.state(0)
        hook.remove()
        session.close()

    def _count(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rows += (args[0] if args else kwargs["hidden_states"]).shape[0]


@pytest.mark.parametrize(("kind", "method", "depth"), CASES)
def test_training_behind_the_prefix_is_training_from_the_beginning_to_rounding(
    made: Any, kind: str, method: dict[str, Any], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, data = made(kind, method)
    behind = Work(spec, data)
    monkeypatch.setattr(Bank, "frozen_depth", lambda bank, slot: 0)
    whole = Work(spec, data)
    assert (behind.depth, whole.depth) == (depth, 0)
    for name, weights in whole.weights.items():
        torch.testing.assert_close(behind.weights[name], weights, rtol=1e-3, atol=1e-4)
    assert behind.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-4)
    assert behind.rows <= 96 + 32 + 2 < whole.rows, "each row once, and the probe"


@pytest.mark.parametrize(("kind", "method", "depth"), CASES)
def test_what_was_not_kept_is_computed_again_with_the_same_bits(
    made: Any, kind: str, method: dict[str, Any], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, data = made(kind, method)
    kept = Work(spec, data)
    monkeypatch.setattr(prefixes.Prefixes, "make_room", lambda one, size_bytes: size_bytes % 3 == 0)
    again = Work(spec, data)
    assert again.rows > kept.rows
    assert all(torch.equal(again.weights[name], weights) for name, weights in kept.weights.items())


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_rows_states_are_the_same_bits_in_any_company(tiny_bert: Path, quantization: str) -> None:
    """Of short rows above all: products with few rows are summed up in another order."""
    loaded = load_base(locked(tiny_bert, quantization=quantization), "classification", "cpu")
    if not Sharing.of(loaded).shared:
        pytest.skip("rows share no pass on this processor")
    bank = Bank(loaded, slots=1)
    ids = torch.randint(5, 90, (8, 3), generator=torch.Generator().manual_seed(0))
    together = bank.frozen_states(2, ids, torch.ones_like(ids), {}).values
    for row in range(8):
        alone = bank.frozen_states(2, ids[row : row + 1], torch.ones(1, 3, dtype=torch.long), {}).values
        assert torch.equal(alone[0], together[row])
    bank.detach()


@pytest.mark.parametrize(("joined", "passes"), [(4096, 1), (0, 3)])
def test_where_any_rows_may_share_a_pass_small_ones_begin_together_at_the_least_depth(
    made: Any, joined: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule of GPUs, tried on a CPU."""
    monkeypatch.setattr(rounds, "JOINED_TOKENS", joined)
    alone, beside, plans = {}, {}, []
    for together in (False, True):
        spec, data = made("encoder", HEAD, batch_size=2)
        session = open_session(spec, 3, 1, sharing=GPU)
        for key, method in (("head", HEAD), ("upper", UPPER), ("whole", WHOLE)):
            session.admit(key, recipe(spec.base, method=method, batch_size=2), data)
        live = [session.occupant(key) for key in ("head", "upper", "whole")]
        if together:
            plans = rounds.plan_rounds(live, None, GPU)
            assert rounds.round_depth([(each, [0]) for each in live[:2]]) == 1
            session.advance({"head": 0.1, "upper": 0.1, "whole": 0.1})
        else:
            for each in live:
                session.advance({each.key: 0.1})
        for each in live:
            (beside if together else alone)[each.key] = session._bank.state(each.slot)
        session.close()
    assert len(plans) == passes and [len(one) for one in plans] == [3 // passes] * passes
    for key, weights in alone.items():
        for name, value in weights.items():
            torch.testing.assert_close(beside[key][name], value, rtol=1e-3, atol=1e-4)


def test_two_that_begin_at_different_depths_skip_what_is_frozen_for_both(made: Any) -> None:
    spec, data = made("encoder", HEAD)
    session = open_session(spec, 2, 1, sharing=GPU)
    for key, method in (("head", HEAD), ("upper", UPPER)):
        session.admit(key, recipe(spec.base, method=method), data)
    depths: list[int] = []
    inner = session._bank._prefix.resumed

    def seen(states: Any) -> Any:
        depths.append(states.depth if states else 0)
        return inner(states)

    session._bank._prefix.resumed = seen  # type: ignore[method-assign]
    for key in ("head", "upper"):
        session.aim(key, 1.0)
    session.turn()
    session.close()
    assert depths == [1]


def test_a_slot_that_adapts_the_lowest_layer_has_no_prefix(made: Any) -> None:
    spec, _ = made("encoder", WHOLE)
    bank = Bank(load_base(spec.base, "classification"), slots=3)
    for slot, method in enumerate((WHOLE, UPPER, HEAD)):
        bank.fill(slot, recipe(spec.base, method=method).method, 2, 0)
    assert [bank.frozen_depth(slot) for slot in range(3)] == [0, 1, 2]
    bank.detach()


def test_layers_that_are_computed_again_in_the_backward_pass_are_not_skipped(made: Any) -> None:
    spec, _ = made("encoder", UPPER)
    bank = Bank(load_base(spec.base, "classification"), slots=1, gradient_checkpointing=True)
    bank.fill(0, spec.method, 2, 0)
    assert bank.frozen_depth(0) == 0
    bank.detach()


def test_rows_whose_states_would_be_too_many_begin_at_the_beginning(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = made("encoder", UPPER)
    monkeypatch.setattr(prefixes, "MOST_BYTES", 2_500)
    assert Work(spec, data).depth == 0


def test_what_nobody_uses_any_more_makes_room_for_what_is_needed(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = made("encoder", HEAD)
    session = open_session(spec, 2, 1)
    session.admit("head", spec, data)
    session.advance({"head": 0.5})
    tokens = sum(row.length_tokens for row in session.occupant("head").rows.train)
    monkeypatch.setattr(prefixes, "MOST_BYTES", tokens * 64 * 4 * 3 // 2)  # room for one and a half
    session.admit("upper", recipe(spec.base, method=UPPER), data)
    upper, head = session.occupant("upper").prefix, session.occupant("head").prefix
    assert upper is not None and head is not None
    session.advance({"upper": 1.0})
    beside = upper.size_bytes
    session.drop("head")
    del head
    session.drop("upper")
    session.admit("again", recipe(spec.base, method=UPPER), data)
    session.advance({"again": 1.0})
    assert session.occupant("again").prefix is upper
    assert upper.size_bytes > beside, "the head's states have made way"
    session.close()


def test_states_that_are_kept_are_not_taken_for_activations(made: Any) -> None:
    """They would teach later estimates that passes over this base are larger than they are."""
    spec, data = made("encoder", HEAD)
    session = open_session(spec, 1, 1)
    session.admit("it", spec, data)
    session.advance({"it": 0.5})
    rows = session.occupant("it").rows
    width = session.loaded.model.config.hidden_size * session.loaded.compute_dtype.itemsize
    kept = session._prefixes.kept_bytes
    assert 0 < kept <= width * sum(row.length_tokens for row in (*rows.train, *rows.validation))
    session._gauge = SimpleNamespace(taken_bytes=kept + 1000)  # type: ignore[assignment]
    assert session.memory()["measured_bytes"] == 1000
