"""What a figure was measured on: CPU flags, GPU, threads, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "ray", "mlflow", "sqlalchemy")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
LOOSE = ("threads",)  # may differ between two measurements that still belong together


def describe(gpu: str | None = None) -> dict[str, str]:
    """Plain facts of this machine and its libraries; `gpu` is the name of the one that was measured on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
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


def place(machine: Mapping[str, str]) -> str:
    """The device a row was measured on, in words: rows of one place stand in one table."""
    return machine.get("gpu") or machine["cpu"]


def same(machine: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two measurements were made on equal hardware with equal libraries."""
    names = {*machine, *other} - set(LOOSE)
    return all(machine.get(name) == other.get(name) for name in names)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
