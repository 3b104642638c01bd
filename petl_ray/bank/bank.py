"""K adapter slots in training beside one frozen base."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from petl_ray.bank.grouped import GroupedLayout
from petl_ray.bank.packing import Packs
from petl_ray.bank.prefix import FrozenPrefix, States
from petl_ray.bank.slot import Flat, Slot, make_slot
from petl_ray.bank.training import Segment, Span, TrainingLayout
from petl_ray.bank.vocabulary import FrozenHead, frozen_head
from petl_ray.bank.wiring import Layout, Wiring, in_force, layout_in_force
from petl_ray.errors import AdapterError, CapacityError, ConflictError
from petl_ray.methods.card import AdapterCard
from petl_ray.methods.files import AdapterFiles, write_adapter
from petl_ray.methods.sites import lowest_layer
from petl_ray.models.loading import LoadedBase


class Bank:
    """The training layout. Slots share the base's computation and nothing else: no slot's numbers depend on another's.

    The base's own dropout stays off; adapters drop out by their own generators while gradients are enabled. With
    `gradient_checkpointing` the layers' activations are computed again in the backward pass instead of being kept.
    `grouped` computes slots of a kind in one product, which agrees with the span-by-span form to rounding, and has draws
    of its own where adapters drop out (see `chance`); None chooses it everywhere but on a CPU, where span by span gives
    the same bits in any company.
    """

    def __init__(
        self, loaded: LoadedBase, slots: int, *, gradient_checkpointing: bool = False, grouped: bool | None = None
    ) -> None:
        if slots < 1:
            raise CapacityError("slots", f"got {slots}", "a bank without slots holds nothing", "Choose 1 or more")
        self.loaded = loaded
        self._wiring = Wiring.attach(loaded.model)
        self._slots: list[Slot | None] = [None] * slots
        self._grouped = loaded.device.type != "cpu" if grouped is None else grouped
        self._packs = Packs(loaded.device)
        self._prefix = FrozenPrefix(loaded, self._wiring.anatomy)
        self._checkpointed = _checkpoint_layers(loaded.model) if gradient_checkpointing else []

    def __len__(self) -> int:
        return len(self._slots)

    def fill(self, slot: int, method: Any, labels: int, seed: int) -> None:
        """Put a fresh adapter into a free slot: fp32 parameters drawn from `seed`; `labels` is 0 for a language model.

        Raises ConflictError if the slot is taken, AdapterError if the method does not fit the base.
        """
        if self._place(slot) is not None:
            raise ConflictError(f"slot {slot}", "is occupied", "an adapter is being trained there", "Free it first")
        self._slots[slot] = make_slot(self._wiring, method, labels, seed, self.loaded.device)

    def free(self, slot: int) -> None:
        """Empty a slot."""
        if (occupant := self._place(slot)) is not None:
            self._packs.forget(occupant)
        self._slots[slot] = None

    def load(self, slot: int, files: AdapterFiles, seed: int = 0) -> None:
        """Put a stored adapter into a free slot, bit for bit; `seed` feeds its dropout from here on."""
        self.fill(slot, files.method, len(files.card.labels), seed)
        self.restore(slot, files.tensors)

    def export(self, slot: int, directory: Path, card: AdapterCard) -> tuple[str, ...]:
        """Write the slot's adapter files below `directory` and return their names. The card must be the slot's own."""
        occupant = self._occupant(slot)
        if card.method != occupant.method or len(card.labels) != occupant.labels:
            raise AdapterError("card", "it describes another adapter than the slot holds", do="Use the slot's spec")
        return write_adapter(directory, occupant.parameters, self._wiring.anatomy, card)

    def parameters(self, slot: int) -> dict[str, nn.Parameter]:
        """The slot's trainable parameters by name."""
        return dict(self._occupant(slot).parameters)

    def flat(self, slot: int) -> Flat:
        """The tensors that the slot's parameters and their gradients are views of."""
        return self._occupant(slot).flat

    def state(self, slot: int) -> dict[str, Tensor]:
        """Copies of the slot's parameters (fp32, CPU), to be restored later."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self._occupant(slot).parameters.items()}

    def restore(self, slot: int, state: Mapping[str, Tensor]) -> None:
        """Put parameters back; raises AdapterError if they are not this slot's."""
        try:
            self._occupant(slot).put(state)
        except (KeyError, ValueError) as error:
            raise AdapterError(
                f"slot {slot}", "got the state of another adapter", str(error), "Check the spec"
            ) from None

    def rng_state(self, slot: int) -> Tensor:
        """The state of the slot's dropout generator (uint8)."""
        return self._occupant(slot).generator.get_state()

    def set_rng_state(self, slot: int, state: Tensor) -> None:
        """Continue the slot's dropout from `state`."""
        self._occupant(slot).generator.set_state(state)

    def frozen_head(self, slot: int) -> FrozenHead | None:
        """The head that turns this slot's hidden states into its logits, exactly as the model does; None where the model
        does more than that (soft caps, scales), where the slot adapts the head itself, and for a classification."""
        output = self.loaded.model.get_output_embeddings()
        adapted = any(self._wiring.sites[name].module is output for name in self._occupant(slot).parts)
        return None if adapted else self._head

    def frozen_depth(self, slot: int) -> int:
        """How many of the lowest layers compute as the plain base does for this slot, so that a pass may begin behind
        them; 0 where none do, where layers are recomputed, and where the model's layers are not one plain stack."""
        sites = [live.plan.site for live in self._occupant(slot).parts.values()]
        depth = 0 if self._checkpointed else lowest_layer(self._wiring.anatomy, sites)
        return depth if self._prefix.holds(depth) else 0

    def frozen_states(
        self, depth: int, input_ids: Tensor, attention_mask: Tensor, extra: Mapping[str, Tensor]
    ) -> States:
        """What the base's first `depth` layers make of rows [rows, length], to be handed in with a Segment."""
        return States(depth, self._prefix.states(depth, input_ids, attention_mask, extra))

    @cached_property
    def _head(self) -> FrozenHead | None:
        return frozen_head(self.loaded)

    def forward(self, segments: Sequence[Segment], *, hidden: bool = False) -> list[Tensor]:
        """One pass of the base over all segments' rows; logits per segment.

        [rows, labels] in fp32 for classification, [rows, length, vocabulary] for a language model. Segments of unequal
        length are padded on the right. Dropout is on exactly while gradients are enabled. With `hidden` a language model
        stops before its head: the last hidden states [rows, length, width], for which see `frozen_head`.
        """
        if not segments:
            return []
        if hidden and self.loaded.task_type == "classification":
            raise AdapterError(
                "hidden", "asked of a classification", "its heads belong to the slots", "Take the logits"
            )
        slots = [self._occupant(segment.slot) for segment in segments]
        seeds = [_dropout_seed(occupant) for occupant in slots]
        rows = [segment.input_ids.shape[0] for segment in segments]
        grouped = self._grouped and len(set(slots)) == len(slots) and all(slot.one_scale for slot in slots)
        order = self._packs.order(slots, rows) if grouped else list(range(len(slots)))
        length = max(segment.input_ids.shape[1] for segment in segments)
        spans, start = [], 0
        for place in order:
            stop = start + rows[place]
            spans.append(Span(slots[place], start, stop, segments[place].input_ids.shape[1], seeds[place]))
            start = stop
        model = self.loaded.model.base_model if hidden else self.loaded.model
        states = _states([segments[place] for place in order], length)
        with in_force(self._layout(spans, length, grouped)), self._prefix.resumed(states):
            found = model(**_batch([segments[place] for place in order], length, self.loaded))
        # one split, not slices: the gradient of a slice is as large as the whole
        split = torch.split(found[0] if hidden else found.logits, [span.stop - span.start for span in spans])
        classes = self.loaded.task_type == "classification"
        parts: dict[int, Tensor] = {}
        for place, span, part in zip(order, spans, split, strict=True):
            width = span.slot.labels if classes else span.length
            parts[place] = part if part.shape[1] == width else part[:, :width]
        return [parts[place] for place in range(len(segments))]

    def _layout(self, spans: Sequence[Span], length: int, grouped: bool) -> Layout:
        if grouped:
            pack = self._packs.pack([span.slot for span in spans])
            return GroupedLayout(spans, length, pack, self.loaded.compute_dtype)
        for span in spans:
            span.slot.refresh(self.loaded.compute_dtype)
        return TrainingLayout(spans, length)

    def detach(self) -> None:
        """Give the base back as it was; the bank is of no use afterwards."""
        for layer in self._checkpointed:
            layer.gradient_checkpointing, layer.training = False, False
        self._slots = [None] * len(self._slots)
        self._packs = Packs(self.loaded.device)
        self._wiring.detach(self.loaded.model)

    def _place(self, slot: int) -> Slot | None:
        if not 0 <= slot < len(self._slots):
            raise CapacityError(
                f"slot {slot}", f"the bank has {len(self._slots)}", "they count from 0", "Use a smaller one"
            )
        return self._slots[slot]

    def _occupant(self, slot: int) -> Slot:
        occupant = self._place(slot)
        if occupant is None:
            raise AdapterError(f"slot {slot}", "is empty", "no adapter was put there", "Fill or load it first")
        return occupant


def _dropout_seed(slot: Slot) -> int | None:
    if not (slot.drops and torch.is_grad_enabled()):
        return None
    return int(torch.randint(2**62, (1,), generator=slot.generator))


def _batch(segments: Sequence[Segment], length: int, loaded: LoadedBase) -> dict[str, Tensor]:
    """All segments' rows under each other, padded on the right to `length`."""

    def stack(parts: Sequence[Tensor | None], fill: int) -> Tensor:
        whole = [
            torch.full_like(segment.input_ids, fill) if part is None else part
            for part, segment in zip(parts, segments, strict=True)
        ]
        missing = [length - part.shape[1] for part in whole]
        padded = [F.pad(p, (0, more), value=fill) if more else p for p, more in zip(whole, missing, strict=True)]
        return torch.cat(padded).to(loaded.device)

    batch = {
        "input_ids": stack([segment.input_ids for segment in segments], loaded.pad_id),
        "attention_mask": stack([segment.attention_mask for segment in segments], 0),
    }
    for name in sorted({name for segment in segments for name in segment.extra}):
        batch[name] = stack([segment.extra.get(name) for segment in segments], 0)
    return batch


def _states(segments: Sequence[Segment], length: int) -> States | None:
    """What all segments' frozen prefixes made of their rows, padded to `length`; None where one brings nothing, or they
    end at different depths: the pass then begins at the beginning."""
    kept = [segment.states for segment in segments if segment.states is not None]
    if len(kept) < len(segments) or len({states.depth for states in kept}) > 1:
        return None
    missing = [length - states.values.shape[1] for states in kept]
    values = [F.pad(s.values, (0, 0, 0, more)) if more else s.values for s, more in zip(kept, missing, strict=True)]
    return States(kept[0].depth, torch.cat(values))


def _checkpoint_layers(model: Any) -> list[Any]:
    """Let every layer that can be recomputed be recomputed, under the layout its forward ran with."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer.training = True  # the layer's own switch; its children stay in evaluation mode
        layer._gradient_checkpointing_func = partial(_recomputed, layer)
    return layers


def _recomputed(layer: Any, function: Any, *args: Any) -> Any:
    def quiet(*inner: Any) -> Any:
        layer.training = False  # so that a dropout written into the layer itself stays off as well
        try:
            return function(*inner)
        finally:
            layer.training = True

    return checkpoint(quiet, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_same_layout)


def _same_layout() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), in_force(layout_in_force())
