"""The bank: one frozen base, many adapter slots beside it, in a layout for training and one for serving.

In: a `LoadedBase`; per slot a `MethodSpec` (training) or `AdapterFiles` (serving). Out: logits per segment or row,
parameters with gradients, adapter files. Must not know: losses, optimizers, tokenisation, runs, Ray.

    bank = Bank(loaded, slots=4, gradient_checkpointing=False, grouped=None)
    bank.fill(slot, method, labels, seed); bank.free(slot); bank.load(slot, files); bank.export(slot, directory, card)
    bank.parameters(slot) -> dict[str, nn.Parameter]
    bank.forward([Segment(slot, input_ids, attention_mask, extra)]) -> [logits]   dropout only while gradients are on
    bank.forward(segments, hidden=True) -> [last hidden states]; bank.frozen_head(slot) -> what makes them logits, or None
    bank.frozen_depth(slot) -> layers; bank.frozen_states(depth, input_ids, attention_mask, extra) -> States for a Segment
    bank.state(slot) / bank.restore(slot, state); bank.rng_state(slot) / bank.set_rng_state(slot, state)
    bank.detach()

    serving = ServingBank(loaded, slots=64, max_rank=None)
    serving.install(slot, files); serving.clear(slot); serving.detach()
    serving.answer(slots_per_row, input_ids, attention_mask, extra=None) -> [logits of each row]

    memory_estimate(loaded, method, labels, tokens) -> bytes of one training slot; see `memory` for what plans with it
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petl_ray.bank.bank import Bank
    from petl_ray.bank.memory import memory_estimate
    from petl_ray.bank.prefix import States
    from petl_ray.bank.serving import ServingBank
    from petl_ray.bank.slot import Flat
    from petl_ray.bank.training import Segment
    from petl_ray.bank.vocabulary import FrozenHead

_DOORS = {  # torch is loaded when one of these is first used
    "Bank": "bank",
    "Flat": "slot",
    "FrozenHead": "vocabulary",
    "Segment": "training",
    "States": "prefix",
    "ServingBank": "serving",
    "memory_estimate": "memory",
}

__all__ = ["Bank", "Flat", "FrozenHead", "Segment", "ServingBank", "States", "memory_estimate"]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)
    raise AttributeError(name)
