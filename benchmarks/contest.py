"""Steps of a pack and of eager PEFT over bases of a shape, timed on any device; and whether their numbers are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.equality import STEPS, wear
from benchmarks.rows import spread
from benchmarks.shapes import Precision, base, dequantized
from petl_ray.bank import Bank, Segment
from petl_ray.methods import LoraSpec
from petl_ray.models import LoadedBase
from petl_ray.tasks import LateLogits

RANK, ALPHA, LABELS, RATE = 8, 16.0, 4, 1e-3
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Point:
    """The median of a step, its quartiles' distance over it, and the peak of the device's memory (0 on a CPU)."""

    step_s: float
    spread: float | None
    rounds: int
    peak_gb: float


def timed_step(step: Step, rounds: int, device: str, warm: int = 3) -> Point:
    """Seconds of a step, everything it asked of the device done."""
    cuda = device.startswith("cuda")
    for _ in range(warm):
        step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        float(step())  # waits for the device
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return Point(sorted(times)[len(times) // 2], spread(times), rounds, peak)


def pack_step(loaded: LoadedBase, slots: int, rows: int, length: int, grouped: bool | None = None) -> Step:
    """A step of `slots` LoRAs on all linear maps, each on `rows` x `length` tokens of its own, in one pass."""
    batches = [_batch(loaded, rows, length, seed) for seed in range(slots)]
    return _pack(_filled(loaded, slots, grouped), range(slots), batches)


def _filled(loaded: LoadedBase, slots: int, grouped: bool | None = None) -> Bank:
    bank = Bank(loaded, slots=slots, grouped=grouped)
    labels = LABELS if loaded.task_type == "classification" else 0
    for slot in range(slots):
        bank.fill(slot, LoraSpec(rank=RANK, alpha=ALPHA, targets="all-linear"), labels, slot)
    return bank


def _pack(bank: Bank, slots: Sequence[int], batches: Sequence[tuple[Tensor, Tensor]]) -> Step:
    """One AdamW walks over the flat tensors of all slots at once."""
    members = []
    for slot in slots:
        flat = bank.flat(slot)
        member = nn.Parameter(flat.values)
        member.grad = flat.gradients
        members.append(member)
    optimizer = torch.optim.AdamW(members, lr=RATE, weight_decay=0.0, fused=True)
    segments = [Segment(slot, ids, torch.ones_like(ids)) for slot, (ids, _) in zip(slots, batches, strict=True)]
    wanted = [labels for _, labels in batches]

    def step() -> Tensor:
        torch._foreach_zero_([member.grad for member in members if member.grad is not None])
        loss = _losses(bank, slots[0], segments, wanted).sum()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def _losses(bank: Bank, first: int, segments: Sequence[Segment], wanted: Sequence[Tensor]) -> Tensor:
    """The mean loss of every slot: [slots]."""
    if bank.loaded.task_type == "classification":
        logits = torch.stack(bank.forward(segments)).float()
        losses = F.cross_entropy(logits.flatten(0, 1), torch.stack(list(wanted)).flatten(), reduction="none")
        return losses.view(len(segments), -1).mean(1)
    head = bank.frozen_head(first)
    assert head is not None, "a Llama's head is its own"
    hidden = torch.stack(bank.forward(segments, hidden=True))[:, :, :-1].flatten(1, 2)
    targets = torch.stack([ids[:, 1:] for ids in wanted]).flatten(1)
    whole = LateLogits(hidden, head.weight, head.bias)
    scored = torch.ones(targets.shape, dtype=torch.bool, device=targets.device)
    return (whole.loss_sum(scored, targets.flatten()) / targets.shape[1]).unsqueeze(0)


def peft_step(
    shape: str, mode: str, rows: int, length: int, device: str, nf4: bool = False, like: Bank | None = None
) -> Step:
    """A step of eager PEFT, one LoRA on all linear maps: in fp32, under autocast, or over bf16 weights under autocast; with
    `like`, from the very numbers of its slot 0."""
    from peft import LoraConfig, TaskType, get_peft_model

    loaded = base(shape, "bf16" if mode == "half" else "fp32", nf4=nf4, device=device)
    classes = loaded.task_type == "classification"
    targets = [
        name
        for name, one in loaded.model.named_modules()
        if isinstance(one, nn.Linear) and (".layer." in name or ".layers." in name)
    ]
    kind = TaskType.SEQ_CLS if classes else TaskType.CAUSAL_LM
    config = LoraConfig(task_type=kind, r=RANK, lora_alpha=int(ALPHA), target_modules=targets)
    model: Any = get_peft_model(loaded.model, config).eval()  # no dropout, as in the bank
    parameters = [one for one in model.parameters() if one.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if like is not None:
        left = wear(model, like)
        assert not left, f"PEFT has no place for {left}"
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    ids, labels = _batch(loaded, rows, length, 0)
    mask = torch.ones_like(ids)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(loaded.device.type, torch.bfloat16, enabled=mode != "fp32"):
            loss: Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def beside_peft(shape: str, precision: Precision, device: str, nf4: bool = False) -> tuple[list[float], list[float]]:
    """The losses of a pack of one and those of eager PEFT over their first steps, from equal weights on equal rows: both in
    fp32, or both over weights in bf16. B is not zero, so that adapters take part from the first step."""
    loaded = base(shape, precision, nf4=nf4, device=device)
    bank = _filled(loaded, 1)
    _stir(bank)
    theirs = peft_step(shape, "fp32" if precision == "fp32" else "half", 2, 8, device, nf4, like=bank)
    ours = _pack(bank, [0], [_batch(loaded, 2, 8, 0)])
    return [float(ours()) for _ in range(STEPS)], [float(theirs()) for _ in range(STEPS)]


def _stir(bank: Bank) -> None:
    """Move slot 0 away from its first values: B is zero there, and A's gradient with it."""
    chance = torch.Generator().manual_seed(1)
    values = bank.flat(0).values
    values.add_(0.02 * torch.randn(values.shape, generator=chance).to(values.device))


def agreement(make: Callable[[], LoadedBase], *, grouped: bool, steps: int = 50) -> float:
    """How far slots of unequal ranks and targets, trained in one pack, end from the same slots trained alone: the largest
    relative difference of a slot's parameters."""
    methods = [
        LoraSpec(rank=2, alpha=ALPHA, targets="query_value"),
        LoraSpec(rank=8, alpha=ALPHA, targets="all-linear"),
        LoraSpec(rank=3, alpha=ALPHA, targets="mlp"),
        LoraSpec(rank=6, alpha=ALPHA, targets="all-linear"),
    ]
    together = _trained(make(), dict(enumerate(methods)), grouped, steps)
    apart = [
        _relative(together[slot], _trained(make(), {slot: method}, grouped, steps)[slot])
        for slot, method in enumerate(methods)
    ]
    return max(apart)


def _trained(loaded: LoadedBase, methods: dict[int, LoraSpec], grouped: bool, steps: int) -> dict[int, Tensor]:
    bank = Bank(loaded, slots=max(methods) + 1, grouped=grouped)
    labels = LABELS if loaded.task_type == "classification" else 0
    for slot, method in methods.items():
        bank.fill(slot, method, labels, slot)
    batches = [_batch(loaded, 3, 12, slot) for slot in methods]
    members = [nn.Parameter(bank.flat(slot).values) for slot in methods]
    for slot, member in zip(methods, members, strict=True):
        member.grad = bank.flat(slot).gradients
    optimizer = torch.optim.AdamW(members, lr=RATE, fused=True)
    for _ in range(steps):
        for slot in methods:
            bank.flat(slot).gradients.zero_()
        outs = bank.forward(
            [Segment(slot, ids, torch.ones_like(ids)) for slot, (ids, _) in zip(methods, batches, strict=True)]
        )
        losses = [_loss(loaded, out, labels) for out, (_, labels) in zip(outs, batches, strict=True)]
        torch.autograd.backward(losses)
        optimizer.step()
    return {slot: bank.flat(slot).values.detach().clone() for slot in methods}


def nf4_error(packed: LoadedBase) -> float:
    """How far logits and gradients over an NF4 base are from those over its dequantised weights, relatively."""
    found = [_once(loaded) for loaded in (packed, dequantized(packed))]
    return max(_relative(one, other) for one, other in zip(*found, strict=True))


def _once(loaded: LoadedBase) -> tuple[Tensor, Tensor]:
    bank = _filled(loaded, 1)
    _stir(bank)
    ids, labels = _batch(loaded, 2, 16, 0)
    out = bank.forward([Segment(0, ids, torch.ones_like(ids))])[0]
    torch.autograd.backward(_loss(loaded, out, labels))
    return out.detach().float(), bank.flat(0).gradients.clone()


def _loss(loaded: LoadedBase, out: Tensor, labels: Tensor) -> Tensor:
    if loaded.task_type == "classification":
        return F.cross_entropy(out.float(), labels)
    return F.cross_entropy(out[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())


def _batch(loaded: LoadedBase, rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random tokens, and what they should give: classes, or the tokens themselves."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, int(loaded.model.config.vocab_size), (rows, length), generator=chance).to(loaded.device)
    if loaded.task_type == "classification":
        return ids, torch.randint(0, LABELS, (rows,), generator=chance).to(loaded.device)
    return ids, ids


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
