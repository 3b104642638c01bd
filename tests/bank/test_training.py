"""The training layout: slots side by side, each as if alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from petl_ray.bank import Bank, Segment, memory_estimate
from petl_ray.errors import AdapterError, CapacityError, ConflictError
from petl_ray.methods import (
    BottleneckSpec,
    HeadSpec,
    Ia3Spec,
    LoraSpec,
    count_parameters,
    lowest_adapted_layer,
    read_adapter,
)
from petl_ray.methods.parts import Init, Part
from petl_ray.methods.table import METHODS
from petl_ray.models.loading import LoadedBase
from tests.bank.rows import card, rows, shake

OCCUPANTS: list[tuple[Any, int]] = [
    (LoraSpec(rank=4, dropout=0.3), 3),
    (BottleneckSpec(size=8), 5),
    (HeadSpec(), 2),
    (LoraSpec(rank=2, targets="query_value", rslora=True), 4),
    (Ia3Spec(), 3),
    (LoraSpec(rank=3, layers=(1,)), 2),
]
LENGTHS = [7, 12, 5, 9, 8, 6]


def _full_bank(loaded: LoadedBase, **more: Any) -> Bank:
    bank = Bank(loaded, len(OCCUPANTS), **more)
    for slot, (method, labels) in enumerate(OCCUPANTS):
        if loaded.task_type == "causal_lm":
            method, labels = (LoraSpec(rank=3), 0) if method.kind == "head" else (method, 0)
        bank.fill(slot, method, labels, seed=slot)
        shake(bank.parameters(slot).values(), slot)
    return bank


def _segments() -> list[Segment]:
    return [rows(slot, 3 + slot % 2, length) for slot, length in enumerate(LENGTHS)]


def _gradients(bank: Bank, segments: list[Segment]) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    logits = bank.forward(segments)
    sum((part.float().pow(2).mean() for part in logits), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    gradients = [
        {name: p.grad.clone() for name, p in bank.parameters(segment.slot).items() if p.grad is not None}
        for segment in segments
    ]
    for segment in segments:
        for parameter in bank.parameters(segment.slot).values():
            parameter.grad = None
    return [part.detach() for part in logits], gradients


def _close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], within: float = 1e-5) -> bool:
    return one.keys() == two.keys() and all(torch.allclose(one[n], two[n], rtol=within, atol=within) for n in one)


@pytest.mark.parametrize("base", ["bert", "llama", "llama_classifier"])
def test_a_slot_computes_and_learns_beside_neighbours_what_it_does_alone(
    base: str, request: pytest.FixtureRequest
) -> None:
    bank = _full_bank(request.getfixturevalue(base))
    segments = _segments()
    draws = [bank.rng_state(slot) for slot in range(len(bank))]
    packed, packed_gradients = _gradients(bank, segments)
    for slot, segment in enumerate(segments):
        bank.set_rng_state(slot, draws[slot])  # the same dropout as beside the neighbours
        alone, alone_gradients = _gradients(bank, [segment])
        assert torch.allclose(alone[0], packed[slot], rtol=1e-5, atol=1e-5)
        assert alone_gradients[0] and _close(alone_gradients[0], packed_gradients[slot])
        assert len(alone_gradients[0]) == len(bank.parameters(slot))
    bank.detach()


def test_a_slot_full_of_nan_harms_nobody_else(bert: LoadedBase) -> None:
    bank = _full_bank(bert)
    segments, draws = _segments(), [bank.rng_state(slot) for slot in range(len(bank))]
    _, before = _gradients(bank, segments)
    for parameter in bank.parameters(1).values():
        parameter.data.fill_(float("nan"))
    for slot, state in enumerate(draws):
        bank.set_rng_state(slot, state)
    logits, after = _gradients(bank, segments)
    assert bool(logits[1].isnan().all())
    for slot in (0, 2, 3, 4, 5):
        assert bool(logits[slot].isfinite().all()) and _close(before[slot], after[slot], 1e-6)
    bank.detach()


def test_dropout_is_on_only_while_gradients_are(bert: LoadedBase) -> None:
    bank = Bank(bert, 1)
    bank.fill(0, LoraSpec(dropout=0.5), 3, seed=1)
    shake(bank.parameters(0).values())
    segment = [rows(0, 4, 8)]
    with torch.no_grad():
        state = bank.rng_state(0)
        assert torch.equal(bank.forward(segment)[0], bank.forward(segment)[0])
        assert torch.equal(bank.rng_state(0), state)
    assert not torch.equal(bank.forward(segment)[0], bank.forward(segment)[0])
    bank.set_rng_state(0, state)
    one = bank.forward(segment)[0]
    bank.set_rng_state(0, state)
    assert torch.equal(one, bank.forward(segment)[0])
    bank.detach()


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_recomputed_activations_give_the_same_gradients(base: str, request: pytest.FixtureRequest) -> None:
    loaded, segments = request.getfixturevalue(base), _segments()
    plain = _full_bank(loaded)
    _, expected = _gradients(plain, segments)
    plain.detach()
    bank = _full_bank(loaded, gradient_checkpointing=True)
    logits = bank.forward(segments)
    with torch.no_grad():
        bank.forward([rows(1, 2, 4)])  # another layout between forward and backward
    sum((part.float().pow(2).mean() for part in logits), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    for slot, gradients in enumerate(expected):
        assert _close({n: p.grad for n, p in bank.parameters(slot).items() if p.grad is not None}, gradients, 1e-6)
    bank.detach()
    assert not any(module.training for module in loaded.model.modules())


def test_first_values_depend_on_the_seed_and_nothing_else(bert: LoadedBase) -> None:
    bank = Bank(bert, 3)
    bank.fill(2, LoraSpec(), 3, seed=5)
    bank.fill(0, LoraSpec(), 3, seed=5)
    bank.fill(1, LoraSpec(), 3, seed=6)
    assert _close(bank.state(0), bank.state(2), 0.0) and not _close(bank.state(0), bank.state(1))
    assert all(p.dtype == torch.float32 for p in bank.parameters(0).values())
    plain = bert.model.bert(input_ids=rows(0, 2, 6).input_ids).pooler_output
    expected = plain @ bank.state(0)["classifier.weight"].T
    assert torch.allclose(bank.forward([Segment(0, rows(0, 2, 6).input_ids, torch.ones(2, 6))])[0], expected, atol=1e-6)
    flat = bank.flat(0)
    heads = [span for group, span in flat.groups.items() if group.head]
    inside = {name for name, (start, stop) in flat.ranges.items() if any(a <= start and stop <= b for a, b in heads)}
    assert inside == {"classifier.weight", "classifier.bias"}
    bank.detach()


def test_an_adapter_goes_to_files_and_back_bit_for_bit(bert: LoadedBase, tmp_path: Path) -> None:
    bank = _full_bank(bert)
    for slot, (method, labels) in enumerate(OCCUPANTS):
        names = bank.export(slot, tmp_path / str(slot), card(bert, method, labels))
        bank.export(slot, tmp_path / f"{slot}-again", card(bert, method, labels))
        for name in names:
            assert (tmp_path / str(slot) / name).read_bytes() == (tmp_path / f"{slot}-again" / name).read_bytes()
        before = bank.state(slot)
        bank.free(slot)
        bank.load(slot, read_adapter(tmp_path / str(slot), bert))
        assert all(torch.equal(before[name], value) for name, value in bank.state(slot).items())
    bank.detach()


def test_a_slot_continues_from_its_saved_state(bert: LoadedBase) -> None:
    bank = Bank(bert, 2)
    bank.fill(0, LoraSpec(dropout=0.2), 3, seed=1)
    shake(bank.parameters(0).values())
    bank.fill(1, LoraSpec(dropout=0.2), 3, seed=9)
    bank.restore(1, bank.state(0))
    bank.set_rng_state(1, bank.rng_state(0))
    segment = rows(0, 3, 6)
    there = Segment(1, segment.input_ids, segment.attention_mask)
    assert torch.equal(bank.forward([segment])[0], bank.forward([there])[0])
    with pytest.raises(AdapterError, match="state of another adapter"):
        bank.restore(0, {"x": torch.zeros(1)})
    bank.detach()


def test_a_wrong_slot_is_refused(bert: LoadedBase) -> None:
    bank = Bank(bert, 1)
    with pytest.raises(AdapterError, match="is empty"):
        bank.forward([rows(0, 1, 4)])
    with pytest.raises(CapacityError, match="count from 0"):
        bank.free(1)
    bank.fill(0, HeadSpec(), 2, seed=0)
    with pytest.raises(ConflictError, match="Free it first"):
        bank.fill(0, HeadSpec(), 2, seed=0)
    with pytest.raises(AdapterError, match="another adapter than the slot holds"):
        bank.export(0, Path("/nowhere"), card(bert, LoraSpec(), 2))
    bank.detach()


def test_the_base_answers_as_itself_while_a_bank_is_attached_and_after(bert: LoadedBase) -> None:
    untouched = copy.deepcopy(bert.model)
    ids = rows(0, 3, 9).input_ids
    bank = _full_bank(bert)
    assert torch.equal(bert.model(input_ids=ids).logits, untouched(input_ids=ids).logits)
    assert list(bert.model.state_dict()) == list(untouched.state_dict())
    second = Bank(bert, 1)
    bank.detach()
    second.fill(0, HeadSpec(), 2, seed=0)
    assert second.forward([rows(0, 2, 4)])[0].shape == (2, 2)
    second.detach()
    assert not any("forward" in module.__dict__ for module in bert.model.modules())


class _Scaling:
    """A method of input scale, low rank and output scale, as a new file would bring it."""

    kind = "lora"

    def parts(self, spec: Any, found: Any) -> tuple[Part, ...]:
        return tuple(
            Part(
                part.site,
                "lora",
                {**part.shapes, "in_scale": (part.site.in_width,), "out_scale": (part.site.width,)},
                {**part.init, "in_scale": Init("ones"), "out_scale": Init("ones")},
                part.scale,
            )
            for part in _LORA.parts(spec, found)
        )

    def config(self, spec: Any, found: Any) -> dict[str, Any]:
        return _LORA.config(spec, found)

    def read_config(self, config: Any, found: Any) -> Any:
        return _LORA.read_config(config, found)


_LORA = METHODS["lora"]


def test_input_and_output_scales_are_a_real_seam(
    bert: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "lora", _Scaling())
    bank = Bank(bert, 1)
    method = LoraSpec(rank=2, targets=("bert.encoder.layer.1.output.dense",))
    bank.fill(0, method, 3, seed=1)
    shake(bank.parameters(0).values())
    values = {name.rsplit(".output.dense.", 1)[-1]: value for name, value in bank.parameters(0).items()}
    seen: list[torch.Tensor] = []
    dense = bert.model.bert.encoder.layer[1].output.dense
    hook = dense.register_forward_hook(lambda _, args, y: seen.extend((args[0], y)))
    bank.forward([rows(0, 2, 5)])
    hook.remove()
    x = seen[0] * values["in_scale"]
    low = x @ values["lora_A.weight"].T @ values["lora_B.weight"].T * method.scale
    expected = values["out_scale"] * (x @ dense.weight.T + dense.bias + low)
    assert torch.allclose(seen[1], expected, atol=1e-5)
    bank.export(0, tmp_path, card(bert, method, 3))
    assert set(read_adapter(tmp_path, bert).tensors) == set(bank.parameters(0))
    bank.detach()


def test_ia3_scales_keys_values_and_what_the_feed_forward_part_computes_inside(bert: LoadedBase) -> None:
    bank = Bank(bert, 1)
    bank.fill(0, Ia3Spec(), 3, seed=1)
    values, batch = bank.parameters(0), rows(0, 2, 5)
    with torch.no_grad():
        (logits,) = bank.forward([batch])
        plain = bert.model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
    assert torch.allclose(logits, plain @ values["classifier.weight"].T, atol=1e-6), "ones change nothing"
    shake(values.values())
    layer = bert.model.bert.encoder.layer[1]
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    watched = {"key": layer.attention.self.key, "value": layer.attention.self.value, "last": layer.output.dense}
    hooks = [
        module.register_forward_hook(lambda _, args, y, name=name: seen.update({name: (args[0], y)}))
        for name, module in watched.items()
    ]
    bank.forward([batch])
    for hook in hooks:
        hook.remove()
    path = "bert.encoder.layer.1."
    for name in ("key", "value"):
        x, y = seen[name]
        scale = values[f"{path}attention.self.{name}.ia3_l"]
        assert torch.allclose(y, torch.nn.functional.linear(x, *_frozen(watched[name])) * scale, atol=1e-5)
    x, y = seen["last"]
    scale = values[f"{path}output.dense.ia3_l"]
    assert torch.allclose(y, torch.nn.functional.linear(x * scale, *_frozen(watched["last"])), atol=1e-5)
    assert not any("attention.output" in name or "query" in name for name in values)
    bank.detach()


def _frozen(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return module.weight, module.bias


def test_adapting_upper_layers_leaves_the_lower_ones_the_plain_base(bert: LoadedBase) -> None:
    bank, batch = Bank(bert, 1), rows(0, 2, 6)
    method = LoraSpec(rank=3, layers=(1,))
    bank.fill(0, method, 3, seed=1)
    shake(bank.parameters(0).values())
    lowest = lowest_adapted_layer(bert.model, method)
    states: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    hooks = [
        layer.register_forward_hook(lambda _, __, y, at=at: states[at].append(y[0] if isinstance(y, tuple) else y))
        for at, layer in enumerate(bert.model.bert.encoder.layer)
    ]
    with torch.no_grad():
        bert.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        bank.forward([batch])
    for hook in hooks:
        hook.remove()
    assert lowest == 1 and all(".layer.1." in name or name.startswith("classifier") for name in bank.parameters(0))
    assert torch.allclose(*states[0], atol=1e-6) and not torch.allclose(*states[1], atol=1e-3)
    bank.detach()


def test_the_memory_estimate_covers_state_and_grows_with_tokens(bert: LoadedBase) -> None:
    state = 20 * count_parameters(bert.model, LoraSpec(), 3)
    small, large = (memory_estimate(bert, LoraSpec(), 3, tokens) for tokens in (128, 1024))
    assert state < small < large and (large - state) == 8 * (small - state)
