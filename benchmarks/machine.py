"""What a figure was measured on: CPU flags, GPU, threads, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "ray", "mlflow", "sqlalchemy")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
DAY_S = 24 * 3600.0
LOOSE = ("threads",)  # may differ between two measurements that still belong together


def describe(gpu: str | None = None) -> dict[str, str]:
    """Plain facts of this machine and its libraries; `gpu` is the name of the one that was measured on."""
    text = _cpuinfo()
    words = set(text.split())
    model = next(
        (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": f"{model}, {os.cpu_count()} cores, {' '.join(flag for flag in FLAGS if flag in words) or 'no wide vectors'}",
        **({"gpu": gpu} if gpu else {}),
        "threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


WITHOUT_AMX = "reach and aim are stated for AMX, which this CPU does not have"


def has_amx() -> bool:
    """Whether the CPU multiplies tiles of bf16, for which bounds of bf16 steps are stated."""
    return "amx_bf16" in _cpuinfo().split()


def session() -> dict[str, str | float]:
    """Names the stretch of time between two starts of the machine, and when in it (seconds since the epoch) it is now."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"boot": boot.read_text().strip() if boot.exists() else "unknown", "at_s": round(time.time(), 1)}


def together(one: Mapping[str, str | float] | None, other: Mapping[str, str | float]) -> bool:
    """Whether two moments lie in one session: no start of the machine between them, and less than a day."""
    if not one or one["boot"] != other["boot"]:
        return False
    return abs(float(one["at_s"]) - float(other["at_s"])) < DAY_S


def place(machine: Mapping[str, str]) -> str:
    """The device a row was measured on, in words: rows of one place stand in one table."""
    return machine.get("gpu") or machine["cpu"]


def same(machine: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two measurements were made on equal hardware with equal libraries."""
    names = {*machine, *other} - set(LOOSE)
    return all(machine.get(name) == other.get(name) for name in names)


@cache
def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
