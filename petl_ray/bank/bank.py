"""K adapter slots in training beside one frozen base."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from petl_ray.bank.slot import Flat, Slot, make_slot
from petl_ray.bank.training import Segment, Span, TrainingLayout
from petl_ray.bank.wiring import Wiring, in_force, layout_in_force
from petl_ray.errors import AdapterError, CapacityError, ConflictError
from petl_ray.methods.card import AdapterCard
from petl_ray.methods.files import AdapterFiles, write_adapter
from petl_ray.models.loading import LoadedBase


class Bank:
    """The training layout. Slots share the base's computation and nothing else: no slot's numbers depend on another's.

    The base's own dropout stays off; adapters drop out by their own generators while gradients are enabled. With
    `gradient_checkpointing` the layers' activations are computed again in the backward pass instead of being kept.
    """

    def __init__(self, loaded: LoadedBase, slots: int, *, gradient_checkpointing: bool = False) -> None:
        if slots < 1:
            raise CapacityError("slots", f"got {slots}", "a bank without slots holds nothing", "Choose 1 or more")
        self.loaded = loaded
        self._wiring = Wiring.attach(loaded.model)
        self._slots: list[Slot | None] = [None] * slots
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
        self._place(slot)
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

    def forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        """One pass of the base over all segments' rows; logits per segment.

        [rows, labels] in fp32 for classification, [rows, length, vocabulary] for a language model. Segments of unequal
        length are padded on the right. Dropout is on exactly while gradients are enabled.
        """
        if not segments:
            return []
        length = max(segment.input_ids.shape[1] for segment in segments)
        spans, start = [], 0
        for segment in segments:
            occupant = self._occupant(segment.slot)
            occupant.refresh(self.loaded.compute_dtype)
            stop = start + segment.input_ids.shape[0]
            spans.append(Span(occupant, start, stop, segment.input_ids.shape[1], _dropout_seed(occupant)))
            start = stop
        with in_force(TrainingLayout(spans, length)):
            logits = self.loaded.model(**_batch(segments, length, self.loaded)).logits
        if self.loaded.task_type == "classification":
            return [logits[span.start : span.stop, : span.slot.labels] for span in spans]
        return [logits[span.start : span.stop, : span.length] for span in spans]

    def detach(self) -> None:
        """Give the base back as it was; the bank is of no use afterwards."""
        for layer in self._checkpointed:
            layer.gradient_checkpointing, layer.training = False, False
        self._slots = [None] * len(self._slots)
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

    def stack(parts: Sequence[Tensor], fill: int) -> Tensor:
        return torch.cat([F.pad(part, (0, length - part.shape[1]), value=fill) for part in parts]).to(loaded.device)

    batch = {
        "input_ids": stack([segment.input_ids for segment in segments], loaded.pad_id),
        "attention_mask": stack([segment.attention_mask for segment in segments], 0),
    }
    for name in sorted({name for segment in segments for name in segment.extra}):
        zeros = [segment.extra.get(name, torch.zeros_like(segment.input_ids)) for segment in segments]
        batch[name] = stack(zeros, 0)
    return batch


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
