"""What a base and its training slots take: estimated before it is paid for, measured in use, and planned with.

Estimates follow from the question alone. What processes really took (`Gauge`) is kept with their outcomes; `calibrate`
makes of it a factor for later estimates over the same base. Nothing here loads torch before it is needed.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_ray.errors import CapacityError
from petl_ray.models.spec import LockedBase

if TYPE_CHECKING:
    from petl_ray.models.loading import LoadedBase

STATE_BYTES = 5 * 4  # fp32: parameter, gradient, AdamW's two moments, and the parameter as it validated best
STACK_BYTES = (
    3 * 4
)  # where slots are multiplied together: their stack, its gradient, and what AdamW makes of all at once
MOST_SLOTS = {"cpu": 8, "cuda": 64}  # more side by side gain nothing: CPUs leave their caches, GPUs are full
PASS_TOKENS = {"fp32": 512, "other": 1024}  # padded tokens of a pass that slots share on a CPU, by precision
USABLE = 0.9  # of the memory there is: allocators lose some, and so do the libraries' own buffers
_BENDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # what a configuration calls a bent head
RATIOS = (0.25, 4.0)  # a measurement beyond these says more about the day than about the base
SHORT_TOKENS = 128
LATE_COPIES = 3  # of a chunk of late logits: as the head gives them, as shares in fp32, as the gradient handed back
NF4_BYTES = 0.516  # of a 4-bit weight with its doubly quantised scales: 1/2 + 1/64 and a little


def memory_estimate(loaded: LoadedBase, method: Any, labels: int, tokens: int) -> int:
    """Bytes of one slot beside the base: state of its parameters, and activations of `tokens` tokens in one step."""
    from petl_ray.methods.table import count_parameters

    return state_estimate(loaded, count_parameters(loaded.model, method, labels)) + activation_estimate(loaded, tokens)


def state_estimate(loaded: LoadedBase, parameters: int, device: str = "cpu") -> int:
    """Bytes of so many trained parameters with all that training keeps of them: below fp32 a cast copy as well, and the
    stack where a `device` multiplies slots together."""
    width = loaded.compute_dtype.itemsize
    return parameters * (STATE_BYTES + (width if width < 4 else 0) + (STACK_BYTES if device != "cpu" else 0))


def activation_estimate(
    loaded: LoadedBase,
    tokens: int,
    row_tokens: int = SHORT_TOKENS,
    checkpointed: bool = False,
    late: bool = False,
    frozen_depth: int = 0,
) -> int:
    """Bytes that autograd keeps of one pass over `tokens` tokens in rows of at most `row_tokens`.

    With `checkpointed` layers that is one hidden vector a layer and token, and one layer's activations while it is
    computed again. Logits that are made `late` are not among them (see `late_estimate`). Of the lowest `frozen_depth`
    layers nothing is kept.

    Kept per token and layer are about ten vectors of the hidden width, four of the feed-forward width and one row of
    attention scores per head, in the base's type; a language model adds its logits and their gradient in fp32. Scores of
    rows longer than SHORT_TOKENS count as they are where attention is explicit, below fp32 with the fp32 copy that many
    models make for the softmax; where it is fused, which keeps none, those of SHORT_TOKENS stand for its buffers.
    Against what autograd was measured to keep for 256 and 1,024 tokens this is 1.5 to 1.8 times as much on MiniLM (room
    for what the backward pass takes on top), and 0.6 to 2 times on a Llama of 260 thousand parameters, whose heads are
    only 8 wide.
    """
    config = loaded.model.config
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers, heads = max(0, int(config.num_hidden_layers) - frozen_depth), int(config.num_attention_heads)
    explicit = getattr(config, "_attn_implementation", None) == "eager"
    width, longer = loaded.compute_dtype.itemsize, max(0, row_tokens - SHORT_TOKENS) if explicit else 0
    layer = width * (10 * hidden + 4 * wide + heads * SHORT_TOKENS)
    layer += heads * longer * (width if width == 4 else width + 4)
    kept = tokens * (layers * width * hidden + layer if checkpointed else layers * layer)
    if loaded.task_type != "causal_lm" or late:
        return kept
    return kept + 2 * _logits_bytes(loaded, tokens)


def late_estimate(loaded: LoadedBase, tokens: int, chunk_bytes: int) -> int:
    """Bytes of the logits of `tokens` tokens that are made late, in chunks of `chunk_bytes` in fp32: one chunk at a time,
    whoever's it is."""
    return LATE_COPIES * min(_logits_bytes(loaded, tokens), chunk_bytes)


def _logits_bytes(loaded: LoadedBase, tokens: int) -> int:
    return tokens * int(loaded.model.config.vocab_size) * 4


def makes_logits_late(loaded: LoadedBase, method: Any) -> bool:
    """Whether a language model's logits can be made where they are scored: its head is frozen under `method`, and its
    configuration names nothing that the model does to them (see `vocabulary.frozen_head`, which tries it out)."""
    from torch import nn

    from petl_ray.methods.sites import anatomy
    from petl_ray.methods.table import all_parts

    if loaded.task_type != "causal_lm":
        return False
    head = loaded.model.get_output_embeddings()
    bent = (getattr(loaded.model.config, name, None) for name in _BENDS)
    adapted = {part.site.name for part in all_parts(method, anatomy(loaded.model), 0)}
    mine = {name for name, module in loaded.model.named_modules() if module is head}
    return type(head) is nn.Linear and all(one in (None, 1) for one in bent) and not adapted & mine


@dataclass(frozen=True)
class Steps:
    """How a question takes its steps: `tokens` padded tokens in one pass at the most, `row_tokens` in one row.

    `late_bytes` are those of a chunk of late logits, None where they are not made late; `kept_bytes` the most that is
    kept of states behind a frozen prefix, for all who need them.
    """

    tokens: int
    row_tokens: int
    checkpointed: bool = False
    late_bytes: int | None = None
    kept_bytes: int = 0

    def activations(self, loaded: LoadedBase, tokens: int) -> int:
        """Bytes kept of a pass over `tokens` tokens."""
        late = self.late_bytes is not None
        return activation_estimate(loaded, tokens, self.row_tokens, self.checkpointed, late)

    def chunk(self, loaded: LoadedBase, tokens: int) -> int:
        """Bytes of late logits while a pass over `tokens` tokens is scored."""
        return 0 if self.late_bytes is None else late_estimate(loaded, tokens, self.late_bytes)


@dataclass(frozen=True)
class Takes:
    """Bytes that training takes beside a base: `slot_bytes` for each slot, `pass_bytes` once for all of them.

    Of a slot `state_bytes` are counted, of what is there once the `kept_bytes` are an upper bound; all else are
    activations, estimated: `row_bytes` those of a single row.
    """

    slot_bytes: float
    pass_bytes: float
    state_bytes: float
    row_bytes: float
    kept_bytes: float = 0.0

    @classmethod
    def told(cls, figures: Mapping[str, Any]) -> Takes:
        """What a footprint says (see `SlotSession.footprint`)."""
        return cls(*(figures[one.name] for one in fields(cls)))

    @property
    def least_bytes(self) -> float:
        """Of one slot whose passes were halved until a single row was left."""
        return self.state_bytes + self.row_bytes

    def calibrated(self, calibration: Calibration) -> Takes:
        """With activations as large as they were measured to be."""
        ratio, activations = calibration.ratio, self.slot_bytes - self.state_bytes
        passes = self.kept_bytes + (self.pass_bytes - self.kept_bytes) * ratio
        return replace(self, slot_bytes=self.state_bytes + activations * ratio, pass_bytes=passes)


def takes(loaded: LoadedBase, device: str, parameters: int, steps: Steps, shared: bool = True) -> Takes:
    """What slots of `parameters` trained parameters take that step as `steps` says.

    On a GPU all slots lie in one pass, and each brings activations of its own. On a CPU passes follow one another, each
    of as many tokens as one slot has, or as a shared pass is bounded to (PASS_TOKENS): their activations come once. So
    do chunks of late logits, and states that are kept, on either.
    """
    state, row = state_estimate(loaded, parameters, device), steps.activations(loaded, steps.row_tokens)
    row, kept = row + steps.chunk(loaded, steps.row_tokens), steps.kept_bytes
    if device != "cpu":
        once = steps.chunk(loaded, steps.tokens) + kept
        return Takes(state + steps.activations(loaded, steps.tokens), once, state, row, kept)
    bound = PASS_TOKENS["fp32" if loaded.base.precision == "fp32" else "other"] if shared else 0
    most = max(steps.tokens, bound)
    return Takes(state, steps.activations(loaded, most) + steps.chunk(loaded, most) + kept, state, row, kept)


def base_estimate(loaded: LoadedBase) -> int:
    """Bytes of a base's weights, as they lie in memory; of a skeleton (on the meta device), as they would lie."""
    if loaded.device.type != "meta":
        return loaded.size_bytes
    width, weights = loaded.compute_dtype.itemsize, sum(parameter.numel() for parameter in loaded.model.parameters())
    if loaded.base.quantization == "none":
        return int(weights * width)
    from petl_ray.methods.sites import anatomy

    sites = anatomy(loaded.model).sites
    packed = sum(one.in_width * one.width for one in sites if one.kind == "linear" and not one.head)
    return int((weights - packed) * width + packed * NF4_BYTES)


def base_name(base: LockedBase) -> str:
    """What measurements are kept under: a base's digest, precision and quantization."""
    return f"{base.pinned.digest}/{base.precision}/{base.quantization}"


@dataclass(frozen=True)
class SlotPlan:
    """So many slots in one process, and why, in words with the figures."""

    slots: int
    why: str


def plan_slots(
    base_bytes: float,
    slot_bytes: float,
    machine_bytes: float,
    most: int,
    pass_bytes: float = 0.0,
    least_bytes: float | None = None,
    beside_bytes: Callable[[int], float] = lambda slots: 0.0,
) -> SlotPlan:
    """How many slots of `slot_bytes`, `most` at the most, one process holds beside its base in `machine_bytes`.

    `pass_bytes` are for the activations of passes that follow one another; `beside_bytes` tells what else so many slots
    take on the machine.

    A tenth of the memory is left alone. Where one slot has no room, but `least_bytes` have, which it takes with a single
    row a pass, one slot is planned: passes are halved as memory runs out. Raises CapacityError where they have none.
    """
    room = machine_bytes * USABLE - base_bytes
    left, each = room - pass_bytes, max(1.0, slot_bytes)
    fit = next((n for n in range(most + 1, 0, -1) if n * each + beside_bytes(n) <= left), int(each <= left))
    slot, base, machine = (told_bytes(count) for count in (slot_bytes, base_bytes, machine_bytes))
    base += f" and passes of {told_bytes(pass_bytes)}" if pass_bytes else ""
    if fit < 1:
        found = f"one slot of {slot} beside a base of {base} does not fit into {machine}"
        if least_bytes is not None and least_bytes <= room:
            return SlotPlan(1, f"{found}; it trains alone, in smaller passes where memory runs out")
        raise CapacityError(
            "memory",
            found + (f", nor do {told_bytes(least_bytes)} for one row at a time" if least_bytes is not None else ""),
            "one process of this placement may take no more, and a tenth stays free",
            "Lower max_length or packs, quantize the base, or choose a bigger machine",
        )
    if min(fit, most) == 1:
        full = fit == 1
        why = f"leaves no room for a second in {machine}" if full else f"beside a base of {base} fits into {machine}"
        return SlotPlan(1, f"one slot of {slot} {why}")
    slots = min(fit, most)
    return SlotPlan(slots, f"{slots} slots of {slot} beside a base of {base} fit into {machine}")


def told_bytes(count: float) -> str:
    """Bytes in two digits: 91 MB, 1.5 GB."""
    for unit in ("B", "KB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 9.95 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.0f} GB" if count >= 9.95 else f"{count:.1f} GB"


@dataclass(frozen=True)
class Machine:
    """Where a process computes: `device` (cpu or cuda), all bytes there, and of a host those free for one process."""

    device: str
    bytes: float
    free_bytes: float | None = None

    def share(self, gpus: float, beside: int) -> float:
        """The bytes that one of `beside` processes, each given `gpus`, may take: of a host no more than are free now,
        since the others have taken theirs already or are yet to come.

        Parts of a GPU share one whole GPU, as many as go into it; a process given whole ones computes on one of them.
        """
        if self.device == "cpu" or not gpus:
            share = self.bytes / max(1, beside)
            return share if self.free_bytes is None else min(share, self.free_bytes)
        return self.bytes / max(1, int(1 / gpus + 1e-9))


def machine_here() -> Machine:
    """The memory where this process would compute."""
    from petl_ray.models.device import choose_device, memory_free_bytes, memory_total_bytes

    device = choose_device()
    if device.type == "cuda":
        import torch

        return Machine("cuda", int(torch.cuda.mem_get_info(device)[1]))
    return Machine("cpu", memory_total_bytes(), memory_free_bytes(device))


@dataclass(frozen=True)
class Calibration:
    """What earlier runs over a base teach: by how much its activations are to be multiplied."""

    ratio: float = 1.0
    runs: int = 0

    @property
    def told(self) -> str:
        """In words."""
        if not self.runs:
            return "not calibrated"
        return f"calibrated from {self.runs} run{'s' if self.runs > 1 else ''} (x {self.ratio:.2g})"


def calibrate(measured: Iterable[Mapping[str, Any]], base: str, device: str) -> Calibration:
    """The median of measured over estimated activations, within RATIOS, of measurements over `base` on such a device.

    A measurement is what `SlotSession.memory` told; `run` says whose it is. What is beyond the state of its slots are
    activations, estimated from the passes that were made: so it holds for questions of another shape too.
    """
    alike = [one for one in measured if one.get("base") == base and one.get("device") == device]
    mine = [one for one in alike if one.get("estimated_bytes", 0) > one.get("state_bytes", float("inf"))]
    if not mine:
        return Calibration()
    low, high = RATIOS
    ratios = [
        (one["measured_bytes"] - one["state_bytes"]) / (one["estimated_bytes"] - one["state_bytes"]) for one in mine
    ]
    runs = len({one.get("run") for one in mine})
    return Calibration(min(high, max(low, statistics.median(ratios))), runs)


class Gauge:
    """What this process takes at its peak beyond what it held when the gauge was made.

    On a GPU by the allocator's own count. On a CPU by resident memory, whose peak the kernel is asked to begin anew;
    where it does not do so for this process, what is resident at the time of asking counts.
    """

    def __init__(self, device: str) -> None:
        with suppress(OSError, AttributeError):  # glibc's: what loading the base has freed is given back first
            ctypes.CDLL(None).malloc_trim(0)
        self._cuda = device == "cuda"
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = int(torch.cuda.memory_allocated())
            return
        self._row = "VmHWM"
        try:
            Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the peak
        except OSError:
            self._row = "VmRSS"
        self._before = _resident("VmRSS")

    @property
    def taken_bytes(self) -> int:
        """The peak so far, or 0 where nobody can say."""
        if self._cuda:
            import torch

            return max(0, int(torch.cuda.max_memory_allocated()) - self._before)
        return max(0, _resident(self._row) - self._before)


def _resident(row: str) -> int:
    """A row of this process's status, in bytes; its resident memory now where the kernel tells no such row."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    rows = dict(line.split(":", 1) for line in lines if line.startswith("Vm"))
    told = rows.get(row) or rows.get("VmRSS")
    return int(told.split()[0]) * 1024 if told else 0
