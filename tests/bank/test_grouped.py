"""The grouped layout equals the loop over spans: outputs and gradients, whatever stands side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from petl_ray.bank import Bank, Segment
from petl_ray.methods import BottleneckSpec, HeadSpec, Ia3Spec, LoraSpec
from petl_ray.models.loading import LoadedBase
from tests.bank.rows import rows, shake

Passed = tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]


def passed(loaded: LoadedBase, methods: list[tuple[Any, int]], segments: list[Segment], **more: Any) -> Passed:
    """Logits and gradients of one pass with fresh slots; a bank filled alike draws alike."""
    bank = Bank(loaded, len(methods), **more)
    for slot, (method, labels) in enumerate(methods):
        bank.fill(slot, method, 0 if loaded.task_type == "causal_lm" else labels, seed=slot)
        shake(bank.parameters(slot).values(), slot)
    logits = bank.forward(segments)
    sum((part.float().pow(2).mean() for part in logits), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    gradients = [
        {n: p.grad.clone() for n, p in bank.parameters(s.slot).items() if p.grad is not None} for s in segments
    ]
    bank.detach()
    return [part.detach() for part in logits], gradients


def same(one: Passed, two: Passed, within: float = 1e-5) -> bool:
    logits = all(
        a.shape == b.shape and bool((a - b).abs().max() <= within * max(1.0, float(a.abs().max())))
        for a, b in zip(one[0], two[0], strict=True)
    )
    return logits and all(
        a.keys() == b.keys()
        and all(bool((a[n] - b[n]).abs().max() <= within * max(1.0, float(a[n].abs().max()))) for n in a)
        for a, b in zip(one[1], two[1], strict=True)
    )


LORAS = some.builds(
    LoraSpec,
    rank=some.integers(1, 9),
    alpha=some.sampled_from([4.0, 16.0]),
    targets=some.sampled_from(["query_value", "attention", "mlp", "all-linear"]),
    dropout=some.sampled_from([0.0, 0.0, 0.3]),
    rslora=some.booleans(),
    layers=some.sampled_from([None, None, (1,)]),
)
METHODS = some.one_of(
    LORAS,
    LORAS,
    some.builds(Ia3Spec, targets=some.sampled_from(["key_value", "key_value_feedforward"])),
    some.builds(BottleneckSpec, size=some.integers(1, 9), activation=some.sampled_from(["gelu", "relu"])),
)
PLACES = some.tuples(METHODS, some.integers(2, 5), some.integers(1, 3), some.integers(3, 9))  # labels, rows, tokens


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_any_company_is_computed_as_span_by_span(base: str, request: pytest.FixtureRequest) -> None:
    loaded: LoadedBase = request.getfixturevalue(base)

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(some.lists(PLACES, min_size=1, max_size=6))
    def holds(places: list[tuple[Any, int, int, int]]) -> None:
        methods = [(method, labels) for method, labels, _, _ in places]
        segments = [rows(slot, count, length) for slot, (_, _, count, length) in enumerate(places)]
        assert same(passed(loaded, methods, segments), passed(loaded, methods, segments, grouped=True))

    holds()


CROWD: list[tuple[Any, int]] = [
    (LoraSpec(rank=4), 3),
    (LoraSpec(rank=4, dropout=0.2), 3),
    (LoraSpec(rank=3, alpha=4), 5),
    (Ia3Spec(), 2),
    (BottleneckSpec(size=6), 4),
    (HeadSpec(), 3),
    (LoraSpec(rank=9, targets="query_value"), 3),
]


def test_recomputed_activations_and_parts_of_a_crowd_give_the_same_gradients(bert: LoadedBase) -> None:
    segments = [rows(slot, 2, 6) for slot in range(len(CROWD))]
    expected = passed(bert, CROWD, segments)
    assert same(expected, passed(bert, CROWD, segments, grouped=True))
    assert same(expected, passed(bert, CROWD, segments, grouped=True, gradient_checkpointing=True))
    some_of_them = [segments[6], segments[1], segments[3]]
    few = passed(bert, CROWD, some_of_them, grouped=True)
    assert same(passed(bert, CROWD, some_of_them), few)
    assert [len(part) for part in few[0]] == [2, 2, 2] and few[0][2].shape[1] == 2, "answers keep the segments' order"


def test_a_four_bit_base_makes_one_product_for_all_slots(
    llama_nf4: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes as bnb

    methods = [(LoraSpec(rank=4), 0), (LoraSpec(rank=7, dropout=0.2), 0), (Ia3Spec(), 0), (LoraSpec(rank=4), 0)]
    segments = [rows(slot, 2, 5) for slot in range(len(methods))]
    seen: list[int] = []
    inner = bnb.matmul_4bit
    monkeypatch.setattr(
        bnb, "matmul_4bit", lambda x, *a, **k: (seen.append(x.numel() // x.shape[-1]), inner(x, *a, **k))[1]
    )
    expected = passed(llama_nf4, methods, segments)
    loop = list(seen)
    seen.clear()
    found = passed(llama_nf4, methods, segments, grouped=True)
    maps = sum(isinstance(module, bnb.nn.Linear4bit) for module in llama_nf4.model.modules())
    assert loop == seen == [8 * 5] * maps
    assert same(expected, found)


@pytest.mark.parametrize("sick", range(5))
def test_a_slot_full_of_nan_harms_nobody_else(bert: LoadedBase, sick: int) -> None:
    """Its neighbours share its products: ranks are padded, rows stand in one batch."""
    segments = [rows(slot, 2, 5 + slot % 2) for slot in range(len(CROWD))]
    bank = Bank(bert, len(CROWD), grouped=True)
    outcomes = []
    for ill in (False, True):
        for slot, (method, labels) in enumerate(CROWD):
            bank.fill(slot, method, labels, seed=slot)
            shake(bank.parameters(slot).values(), slot)
        if ill:
            for parameter in bank.parameters(sick).values():
                parameter.data.fill_(float("nan"))
        logits = bank.forward(segments)
        torch.autograd.backward([part.pow(2).mean() for part in logits])
        outcomes.append(
            ([part.detach() for part in logits], [bank.flat(s).gradients.clone() for s in range(len(CROWD))])
        )
        for slot in range(len(CROWD)):
            bank.free(slot)
    bank.detach()
    (well, well_gradients), (beside, beside_gradients) = outcomes
    assert bool(beside[sick].isnan().all())
    for slot in set(range(len(CROWD))) - {sick}:
        assert torch.equal(well[slot], beside[slot]) and torch.equal(well_gradients[slot], beside_gradients[slot])


def test_gradients_add_up_over_passes_and_land_in_the_flat_tensor(bert: LoadedBase) -> None:
    sums = []
    for grouped in (False, True):
        bank = Bank(bert, 2, grouped=grouped)
        for slot in (0, 1):
            bank.fill(slot, LoraSpec(rank=5, dropout=0.1), 3, seed=slot)
            shake(bank.parameters(slot).values(), slot)
        for turn, company in enumerate([(0, 1), (0,), (1, 0)]):
            logits = bank.forward([rows(slot, 2 + turn, 6, seed=turn) for slot in company])
            torch.autograd.backward([part.pow(2).mean() for part in logits])
        sums.append([bank.flat(slot).gradients.clone() for slot in (0, 1)])
        with torch.no_grad():
            assert bank.forward([rows(0, 2, 4)])[0].shape == (2, 3)
        bank.detach()
    for one, two in zip(*sums, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6) and float(one.abs().sum()) > 0


def test_a_slot_that_comes_twice_in_a_pass_gets_both_gradients(bert: LoadedBase) -> None:
    methods = [(LoraSpec(rank=4), 3), (LoraSpec(rank=4), 3)]
    segments = [rows(0, 2, 6), rows(1, 2, 6), rows(0, 1, 6, seed=9)]
    assert same(passed(bert, methods, segments), passed(bert, methods, segments, grouped=True))


def test_half_precision_agrees_to_its_rounding(tiny_bert: Any) -> None:
    from tests.bank.conftest import _load

    loaded = _load(tiny_bert, "classification", precision="bf16")
    segments = [rows(slot, 2, 6) for slot in range(len(CROWD))]
    plain, grouped = passed(loaded, CROWD, segments), passed(loaded, CROWD, segments, grouped=True)
    assert all((a - b).abs().max() < 0.05 for a, b in zip(plain[0], grouped[0], strict=True))
    for one, two in zip(plain[1], grouped[1], strict=True):
        assert all(p.dtype == torch.float32 for p in two.values())
        ours, theirs = (torch.cat([part[name].flatten() for name in sorted(part)]) for part in (one, two))
        assert (ours - theirs).norm() < 0.05 * ours.norm()
