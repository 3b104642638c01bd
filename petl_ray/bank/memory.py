"""What a base and its training slots take: estimated before it is paid for, measured in use, and planned with.

Estimates follow from the question alone. What processes really took (`Gauge`) is kept with their outcomes; `calibrate`
makes of it a factor for later estimates over the same base. Nothing here loads torch before it is needed.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_ray.errors import CapacityError
from petl_ray.models.spec import LockedBase

if TYPE_CHECKING:
    from petl_ray.models.loading import LoadedBase

STATE_BYTES = 4 * 4  # fp32: parameter, gradient and AdamW's two moments
MOST_SLOTS = {"cpu": 8, "cuda": 64}  # more side by side gain nothing: CPUs leave their caches, GPUs are full
PASS_TOKENS = {"fp32": 512, "other": 1024}  # padded tokens of a pass that slots share on a CPU, by precision
USABLE = 0.9  # of the memory there is: allocators lose some, and so do the libraries' own buffers
RATIOS = (0.25, 4.0)  # a measurement beyond these says more about the day than about the base
NF4_BYTES = 0.516  # of a 4-bit weight with its doubly quantised scales: 1/2 + 1/64 and a little


def memory_estimate(loaded: LoadedBase, method: Any, labels: int, tokens: int) -> int:
    """Bytes of one slot beside the base: state of its parameters, and activations of `tokens` tokens in one step."""
    from petl_ray.methods.table import count_parameters

    return count_parameters(loaded.model, method, labels) * STATE_BYTES + activation_estimate(loaded, tokens)


def activation_estimate(loaded: LoadedBase, tokens: int) -> int:
    """Bytes that autograd keeps of one pass over `tokens` tokens.

    Kept per token and layer are about ten vectors of the hidden width, four of the feed-forward width and one row of
    attention scores per head (rows of 128 tokens), in the base's type; a language model adds its logits and their
    gradient in fp32. Against what autograd was measured to keep for 256 and 1,024 tokens this is 1.5 to 1.8 times as
    much on MiniLM (room for what the backward pass takes on top), and 0.6 to 2 times on a Llama of 260 thousand
    parameters, whose heads are only 8 wide.
    """
    config = loaded.model.config
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    width = loaded.compute_dtype.itemsize
    activations = tokens * layers * width * (10 * hidden + 4 * wide + heads * 128)
    logits = tokens * int(config.vocab_size) * 8 if loaded.task_type == "causal_lm" else 0
    return activations + logits


@dataclass(frozen=True)
class Takes:
    """Bytes that training takes beside a base: `slot_bytes` for each slot, `pass_bytes` once for all of them."""

    slot_bytes: int
    pass_bytes: int


def takes(loaded: LoadedBase, device: str, parameters: int, tokens: int, shared: bool = True) -> Takes:
    """What slots of `parameters` trained parameters take whose steps have `tokens` padded tokens.

    On a GPU all slots lie in one pass, and each brings activations of its own. On a CPU passes follow one another, each
    of as many tokens as one slot has, or as a shared pass is bounded to (PASS_TOKENS): their activations come once.
    """
    state = parameters * STATE_BYTES
    if device != "cpu":
        return Takes(state + activation_estimate(loaded, tokens), 0)
    bound = PASS_TOKENS["fp32" if loaded.base.precision == "fp32" else "other"] if shared else 0
    return Takes(state, activation_estimate(loaded, max(tokens, bound)))


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
    base_bytes: float, slot_bytes: float, machine_bytes: float, most: int, pass_bytes: float = 0.0
) -> SlotPlan:
    """How many slots of `slot_bytes`, `most` at the most, one process holds beside its base in `machine_bytes`.

    `pass_bytes` are for the activations of passes that follow one another.

    A tenth of the memory is left alone. Raises CapacityError where there is no room for one slot.
    """
    left = machine_bytes * USABLE - base_bytes - pass_bytes
    fit = int(left // max(1.0, slot_bytes))
    slot, base, machine = (told_bytes(count) for count in (slot_bytes, base_bytes, machine_bytes))
    base += f" and passes of {told_bytes(pass_bytes)}" if pass_bytes else ""
    if fit < 1:
        raise CapacityError(
            "memory",
            f"one slot of {slot} beside a base of {base} does not fit into {machine}",
            "one process of this placement may take no more, and a tenth stays free",
            "Lower batch_size, max_length or packs, quantize the base, or choose a bigger machine",
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
    """Where a process computes: `device` (cpu or cuda) and the bytes there, free ones of a host, all of a GPU."""

    device: str
    bytes: int

    def share(self, gpus: float, beside: int) -> float:
        """The bytes that one of `beside` processes, each given `gpus`, may take.

        Parts of a GPU share one whole GPU, as many as go into it; a process given whole ones computes on one of them.
        """
        if self.device == "cpu" or not gpus:
            return self.bytes / max(1, beside)
        return self.bytes / max(1, int(1 / gpus + 1e-9))


def machine_here() -> Machine:
    """The memory where this process would compute."""
    from petl_ray.models.device import choose_device, memory_free_bytes

    device = choose_device()
    if device.type == "cuda":
        import torch

        return Machine("cuda", int(torch.cuda.mem_get_info(device)[1]))
    return Machine("cpu", memory_free_bytes(device))


@dataclass(frozen=True)
class Calibration:
    """What earlier runs over a base teach: by how much estimates of its slots are to be multiplied."""

    ratio: float = 1.0
    runs: int = 0

    @property
    def told(self) -> str:
        """In words."""
        if not self.runs:
            return "not calibrated"
        return f"calibrated from {self.runs} run{'s' if self.runs > 1 else ''} (x {self.ratio:.2g})"


def calibrate(measured: Iterable[Mapping[str, Any]], base: str, device: str) -> Calibration:
    """The median of measured over estimated bytes, within RATIOS, of the measurements over `base` on such a device.

    A measurement is what `SlotSession.memory` told; `run` says whose it is.
    """
    alike = [one for one in measured if one.get("base") == base and one.get("device") == device]
    mine = [one for one in alike if one.get("estimated_bytes", 0) > 0]
    if not mine:
        return Calibration()
    ratios, (low, high) = [one["measured_bytes"] / one["estimated_bytes"] for one in mine], RATIOS
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
