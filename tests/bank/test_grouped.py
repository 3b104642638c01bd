"""The grouped layout equals the loop over spans: outputs and gradients, whatever stands side by side."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from torch.utils._python_dispatch import TorchDispatchMode

from petl_ray.bank import Bank, Segment, chance, wiring
from petl_ray.bank.training import TrainingLayout
from petl_ray.bank.wiring import Wired
from petl_ray.methods import BottleneckSpec, HeadSpec, Ia3Spec, LoraSpec
from petl_ray.models.loading import LoadedBase
from tests.bank.conftest import _load, _unchanged
from tests.bank.rows import rows, shake

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
Passed = tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bert(device: str, tiny_bert: Path) -> Iterator[LoadedBase]:
    yield from _unchanged(_load(tiny_bert, "classification", device))


@pytest.fixture(scope="module")
def llama(device: str, tiny_llama: Path) -> Iterator[LoadedBase]:
    yield from _unchanged(_load(tiny_llama, "causal_lm", device))


@pytest.fixture(scope="module")
def llama_nf4(device: str, tiny_llama: Path) -> Iterator[LoadedBase]:
    yield from _unchanged(_load(tiny_llama, "causal_lm", device, quantization="nf4"))


@pytest.fixture(autouse=True)
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop draws by generators; here it is given the grouped form's draws, made for each span by itself."""

    def drawn(_: TrainingLayout, span: Any, live: Any, wired: Wired, x: torch.Tensor) -> torch.Tensor | None:
        if live is None or span.seed is None or live.plan.dropout == 0:
            return None
        rows, features = span.stop - span.start, x.shape[-1]
        keys = chance.row_keys([span.seed], [rows], x.numel() // features // rows, x.device)
        columns = chance.Columns(x.device).keys(wired.index, features)
        limits = chance.limits([1.0 - live.plan.dropout], [rows], x.dtype, x.device)
        return chance.mask(keys, columns, *limits).view(x.shape)

    monkeypatch.setattr(TrainingLayout, "_mask", drawn)


def passed(loaded: LoadedBase, methods: list[tuple[Any, int]], segments: list[Segment], **more: Any) -> Passed:
    """Logits and gradients of one pass with fresh slots; a bank filled alike draws alike."""
    bank = Bank(loaded, len(methods), **{"grouped": False, **more})
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


def same(one: Passed, two: Passed) -> bool:
    within = 1e-5 if one[0][0].device.type == "cpu" else 1e-4
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
def test_any_company_is_computed_as_span_by_span(base: str, device: str, request: pytest.FixtureRequest) -> None:
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


@pytest.mark.parametrize("seen_through", [True, False])
def test_a_four_bit_base_makes_one_product_for_all_slots(
    llama_nf4: LoadedBase, seen_through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By bitsandbytes itself, as on a GPU; on a CPU each matrix is unpacked once a way for everybody."""
    import bitsandbytes as bnb

    if seen_through and llama_nf4.device.type != "cpu":
        pytest.skip("bitsandbytes has kernels of its own here")
    if not seen_through:
        monkeypatch.setattr(wiring, "frozen_matrix", lambda _: None)
    methods = [(LoraSpec(rank=4), 0), (LoraSpec(rank=7, dropout=0.2), 0), (Ia3Spec(), 0), (LoraSpec(rank=4), 0)]
    segments = [rows(slot, 2, 5) for slot in range(len(methods))]
    products, unpacked = [0], [0]

    def counted(count: list[int], inner: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            count[0] += 1
            return inner(*args, **more)

        return call

    monkeypatch.setattr(bnb, "matmul_4bit", counted(products, bnb.matmul_4bit))
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", counted(unpacked, bnb.functional.dequantize_4bit))
    maps = sum(isinstance(module, bnb.nn.Linear4bit) for module in llama_nf4.model.modules())
    expected = passed(llama_nf4, methods, segments)
    loop, products[0] = products[0], 0
    ways, unpacked[0] = unpacked[0], 0
    assert same(expected, passed(llama_nf4, methods, segments, grouped=True))
    assert (loop, products[0]) == ((0, 0) if seen_through else (maps, maps))
    if seen_through:
        assert maps < ways <= 2 * maps and maps < unpacked[0] <= 2 * maps


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


def test_half_precision_agrees_to_its_rounding(tiny_bert: Path, device: str) -> None:
    loaded = _load(tiny_bert, "classification", device, precision="bf16")
    segments = [rows(slot, 2, 6) for slot in range(len(CROWD))]
    plain, grouped = passed(loaded, CROWD, segments), passed(loaded, CROWD, segments, grouped=True)
    assert all((a - b).abs().max() < 0.05 for a, b in zip(plain[0], grouped[0], strict=True))
    for one, two in zip(plain[1], grouped[1], strict=True):
        assert all(p.dtype == torch.float32 for p in two.values())
        ours, theirs = (torch.cat([part[name].flatten() for name in sorted(part)]) for part in (one, two))
        assert (ours - theirs).norm() < 0.05 * ours.norm()


def test_what_is_kept_of_slots_goes_with_them(bert: LoadedBase) -> None:
    bank = Bank(bert, 4, grouped=True)
    for turn in range(40):
        for slot in range(4):
            bank.fill(slot, LoraSpec(rank=1 + (turn * 3 + slot * 5) % 16), 2 + turn % 3, seed=slot)
        for company in ((0, 1, 2, 3), (0, 2), (1, 2, 3)):
            made = bank.forward([rows(slot, 1, 4) for slot in company])
        torch.autograd.backward([part.sum() for part in made])
        for slot in range(4) if turn < 39 else ():
            bank.free(slot)
    packs = bank._packs
    assert len(packs._packs) == 3 and len(packs._outlines) <= 4 and len(packs._frames) <= 12
    held = [frame for pack in packs._packs.values() for family in pack.families for frame in [family.frame]]
    assert not any(isinstance(value, torch.Tensor) for frame in held for value in vars(frame).values())
    del held, made
    for slot in range(4):
        bank.free(slot)
    gc.collect()
    assert not packs._packs and not packs._outlines and not packs._frames and not packs._of_slot
    bank.detach()


def test_dropout_takes_as_many_operations_for_twelve_slots_as_for_two(bert: LoadedBase) -> None:
    counts = []
    for slots in (2, 12):
        bank = Bank(bert, slots, grouped=True)
        for slot in range(slots):
            bank.fill(slot, LoraSpec(rank=4, dropout=0.1 + slot / 100), 3, seed=slot)
        with Counted() as seen:
            bank.forward([rows(slot, 2, 6) for slot in range(slots)])
        counts.append((seen.names.count("bitwise_xor"), seen.names.count("where")))
        within = seen.names[seen.names.index("bitwise_xor") :]
        assert not any(name.startswith(("rand", "uniform", "bernoulli")) for name in within)
        assert "_local_scalar_dense" not in within, "nobody waits for a GPU"
        bank.detach()
    assert counts[0] == counts[1] and counts[0][0] > 0


class Counted(TorchDispatchMode):
    """Names of the operations within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
