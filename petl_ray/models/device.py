"""Where and how the base computes: threads, device, the precision that pays, free memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from petl_ray.errors import CapacityError
from petl_ray.models.spec import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


CPU_FACTS = Path("/proc/cpuinfo")
KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}  # else 1,024 each


def use_threads(count: int) -> None:
    """Set the threads of this process: the only place that does. Training is bit-reproducible for equal counts."""
    torch.set_num_threads(max(1, count))


def keep_few_kernels() -> None:
    """Bound what oneDNN keeps of the products it has compiled, one for every shape, before the first is asked for; what
    the environment already says stands.

    Rows have many lengths and adapters many ranks, so hundreds of shapes come up. Measured with a pack of four LoRA
    slots over MiniLM in bf16, one thread, 8 x 64 tokens a step, once each in one run: 1,247 MB peak and 25.5 s with 1,024
    kept (the libraries' default), 789 MB and 23.3 s with 128. Meanings: oneDNN's guide on its primitive cache; for the
    other, of primitive descriptors, PyTorch's tutorial on AWS Graviton.
    """
    for name, count in KERNELS_KEPT.items():
        os.environ.setdefault(name, count)


def choose_device(wanted: str = "auto") -> torch.device:
    """The device for `wanted`: `auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises CapacityError if CUDA is asked for and absent.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise CapacityError("device", f"got {wanted}", "no CUDA device is visible to this process", "Use cpu or auto")
    device = torch.device(wanted)
    return torch.device("cuda", torch.cuda.current_device()) if wanted == "cuda" else device


def choose_precision(device: torch.device | str = "auto") -> Precision:
    """The precision `auto` stands for on this machine.

    bf16 wherever the hardware multiplies it: CUDA from Ampere on, and CPUs with AVX512-BF16 or AMX. Measured with
    MiniLM (forward and backward through the frozen base, one thread of an EPYC with AVX512-BF16 and no AMX, explicit
    attention, fp32 through MKL): 45 ms against 154 ms in fp32 at 8 x 32 tokens, 173 against 570 at 16 x 64, 719 against
    2419 at 32 x 128;
    inference 2.8 to 3.2 times faster. Elsewhere bf16 is emulated, so fp32 it is.
    """
    device = choose_device(device) if isinstance(device, str) else device
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "fp32"


def choose_attention(device: torch.device, precision: Precision) -> str | None:
    """The attention implementation to ask transformers for; None leaves the choice to it.

    On a CPU torch's flash attention has a backward that is slow below fp32 (MiniLM, 16 x 64 tokens, bf16: 319 ms a step
    through it, 173 ms through explicit matrix products), so explicit attention is used there. In fp32 flash attention
    is never slower.
    """
    return "eager" if device.type == "cpu" and precision != "fp32" else None


def memory_free_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes this process may still take on `device`: free GPU memory, or the least of the host's and the cgroup's."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _host_free_bytes()
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text()) + _reclaimable_bytes()))
    return free


def _reclaimable_bytes() -> int:
    """Pages of files that the control group is charged for and would give up at once."""
    told = Path("/sys/fs/cgroup/memory.stat")
    rows = dict(line.split() for line in told.read_text().splitlines()) if told.is_file() else {}
    return int(rows.get("inactive_file", 0))


def memory_total_bytes() -> int:
    """Bytes of this host, or of its control group where that is limited to less."""
    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


def _host_free_bytes() -> int:
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu_multiplies_bf16() -> bool:
    if not CPU_FACTS.is_file():
        return False
    flags = next((line for line in CPU_FACTS.read_text().splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
