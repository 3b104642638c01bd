"""The serving layout: every row of a batch may want another adapter; stacked tensors are gathered per row.

No loop runs over adapters, so a batch with 32 adapters costs what a batch with one costs. A row that wants no adapter
is answered by the plain base, whatever its neighbours want.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from petl_ray.bank.slot import DOWN, UP
from petl_ray.bank.stacks import Stack
from petl_ray.bank.training import ACTIVATIONS
from petl_ray.bank.wiring import Wired, Wiring, in_force
from petl_ray.errors import AdapterError, CapacityError
from petl_ray.methods.files import AdapterFiles
from petl_ray.methods.parts import Part
from petl_ray.methods.table import all_parts
from petl_ray.models.loading import LoadedBase

Kind = tuple[str, str]  # op and activation: what may share one stack


class ServingBank:
    """Slots that answer. Installing writes one slot's rows only; callers keep a slot out of use while it is written."""

    def __init__(self, loaded: LoadedBase, slots: int, max_rank: int | None = None) -> None:
        if slots < 1:
            raise CapacityError("slots", f"got {slots}", "a bank without slots holds nothing", "Choose 1 or more")
        self.loaded, self.max_rank = loaded, max_rank
        self._wiring = Wiring.attach(loaded.model)
        self._labels: list[int | None] = [None] * slots
        self.stacks: dict[str, dict[Kind, Stack]] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def install(self, slot: int, files: AdapterFiles) -> None:
        """Put an adapter that passed `read_adapter` into a slot, over whatever was there.

        Raises AdapterError if its rank is above `max_rank` or it was made for another base.
        """
        self._known(slot)
        rank = getattr(files.method, "rank", 0)
        if self.max_rank is not None and rank > self.max_rank:
            raise AdapterError("rank", f"got {rank}", f"this bank serves at most {self.max_rank}", "Raise max_rank")
        if files.card.base != self.loaded.digest:
            raise AdapterError(
                "card.json", f"made for base {files.card.base[:12]}", f"this is {self.loaded.digest[:12]}"
            )
        parts = all_parts(files.method, self._wiring.anatomy, len(files.card.labels))
        self.clear(slot)
        for part in parts:
            self._stack(part).put(slot, _values(part, files.tensors))
        self._labels[slot] = len(files.card.labels)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self._known(slot)
        self._labels[slot] = None
        for stacks in self.stacks.values():
            for stack in stacks.values():
                if slot in stack.members:
                    stack.clear(slot)

    @torch.inference_mode()
    def answer(
        self,
        slots: Sequence[int | None],
        input_ids: Tensor,
        attention_mask: Tensor,
        extra: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor]:
        """Logits of each row of `input_ids` [rows, length], answered by the slot named for that row.

        [labels of the slot] in fp32 for classification; [length, vocabulary] for a language model. None asks the plain
        base, which has no labels: [0] for classification. Raises AdapterError for an empty slot, never asks the base.
        """
        if len(slots) != input_ids.shape[0]:
            raise ValueError(f"{len(slots)} slots for {input_ids.shape[0]} rows")
        labels = [0 if slot is None else self._installed(slot) for slot in slots]
        device = self.loaded.device
        lines = [len(self) if slot is None else slot for slot in slots]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **(extra or {})}
        with in_force(ServingLayout(self.stacks, lines, device)):
            logits = self.loaded.model(**{name: value.to(device) for name, value in batch.items()}).logits
        if self.loaded.task_type == "causal_lm":
            return list(logits.unbind(0))
        return [row[:count].float() for row, count in zip(logits, labels, strict=True)]

    def detach(self) -> None:
        """Give the base back as it was; the bank is of no use afterwards."""
        self.stacks.clear()
        self._labels = [None] * len(self._labels)
        self._wiring.detach(self.loaded.model)

    def _known(self, slot: int) -> None:
        if not 0 <= slot < len(self._labels):
            raise CapacityError(f"slot {slot}", f"the bank has {len(self)}", "they count from 0", "Use a smaller one")

    def _installed(self, slot: int) -> int:
        self._known(slot)
        labels = self._labels[slot]
        if labels is None:
            raise AdapterError(f"slot {slot}", "is empty", "no adapter is installed there", "Install one first")
        return labels

    def _stack(self, part: Part) -> Stack:
        """The stack for a part, made when its site is first used; roles that come later are added with neutral rows."""
        stacks = self.stacks.setdefault(part.site.name, {})
        kind = (part.op, part.activation)
        if kind not in stacks:
            dtype = torch.float32 if part.op == "replace" else self.loaded.compute_dtype
            stacks[kind] = Stack(len(self), self._rest(part), dtype, self.loaded.device)
        missing = {role: value for role, value in self._rest(part).items() if role not in stacks[kind].tensors}
        if missing:
            stacks[kind].add(missing)
        return stacks[kind]

    def _rest(self, part: Part) -> dict[str, Tensor]:
        wired, rest = self._wiring.sites[part.site.name], {}
        for role, shape in part.shapes.items():
            base = wired.base_value(role) if part.op == "replace" and part.site.kind == "norm" else None
            rest[role] = torch.zeros(shape) if base is None else base.float().cpu()
            if role in ("in_scale", "out_scale"):
                rest[role] = torch.ones(shape)
        return rest


def _values(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A part's values as its stack holds them; LoRA's scale goes into B."""
    values = {role: tensors[name] for role, name in part.names().items()}
    if UP in values:
        values[UP] = values[UP] * part.scale
    return values


class ServingLayout:
    """One mixed batch: `lines` names each row's line in the stacks, its slot or the last line for the plain base."""

    def __init__(self, stacks: Mapping[str, Mapping[Kind, Stack]], lines: Sequence[int], device: torch.device) -> None:
        self.stacks, self.lines, self.wanted = stacks, lines, set(lines)
        self.rows = torch.tensor(lines, device=device)

    def linear(self, wired: Wired, x: Tensor) -> Tensor:
        """W x for all rows at once, then each row's own addition; heads are replaced altogether."""
        used = self._used(wired)
        if not used:
            return wired.base(x)
        x3 = x.reshape(self.rows.shape[0], -1, x.shape[-1])
        if ("replace", "none") in used:
            y3 = self._replaced(used["replace", "none"], x3)
        else:
            lora = used.pop(("lora", "none"), None)
            y3 = self._lora(wired, lora, x, x3) if lora else wired.base(x).reshape(*x3.shape[:2], -1)
            for (_, activation), stack in used.items():
                y3 = self._bottleneck(stack, activation, y3)
        return y3.reshape(*x.shape[:-1], y3.shape[-1])

    def norm(self, wired: Wired, x: Tensor) -> Tensor:
        """Rows with a norm of their own through it, the others through the base's, untouched."""
        used = self._used(wired)
        if not used:
            return wired.base(x)
        (stack,) = used.values()
        x3 = x.reshape(self.rows.shape[0], -1, x.shape[-1])
        bias = stack.of("bias", self.rows).unsqueeze(1) if "bias" in stack.tensors else None
        own = wired.form.apply(x3, stack.of("weight", self.rows).unsqueeze(1), bias)
        members = torch.tensor([line in stack.members for line in self.lines], device=x.device)
        return torch.where(members.view(-1, 1, 1), own, wired.base(x).reshape(x3.shape)).reshape(x.shape)

    def _used(self, wired: Wired) -> dict[Kind, Stack]:
        stacks = self.stacks.get(wired.site.name, {})
        return {kind: stack for kind, stack in stacks.items() if not stack.members.isdisjoint(self.wanted)}

    def _lora(self, wired: Wired, stack: Stack, x: Tensor, x3: Tensor) -> Tensor:
        if "in_scale" in stack.tensors:
            x3 = x3 * stack.of("in_scale", self.rows).unsqueeze(1)
        y3 = wired.base(x3.reshape(x.shape)).reshape(*x3.shape[:2], -1)
        if DOWN in stack.tensors:
            low = torch.bmm(x3, stack.of(DOWN, self.rows).transpose(1, 2))
            y3 = torch.baddbmm(y3, low, stack.of(UP, self.rows).transpose(1, 2))
        return y3 * stack.of("out_scale", self.rows).unsqueeze(1) if "out_scale" in stack.tensors else y3

    def _bottleneck(self, stack: Stack, activation: str, y3: Tensor) -> Tensor:
        down = torch.baddbmm(
            stack.of("bottleneck_down.bias", self.rows).unsqueeze(1),
            y3,
            stack.of("bottleneck_down.weight", self.rows).transpose(1, 2),
        )
        up = stack.of("bottleneck_up.weight", self.rows).transpose(1, 2)
        own = torch.baddbmm(stack.of("bottleneck_up.bias", self.rows).unsqueeze(1), ACTIVATIONS[activation](down), up)
        return y3 + own

    def _replaced(self, stack: Stack, x3: Tensor) -> Tensor:
        y3 = torch.bmm(x3.float(), stack.of("weight", self.rows).transpose(1, 2))
        return y3 + stack.of("bias", self.rows).unsqueeze(1) if "bias" in stack.tensors else y3
