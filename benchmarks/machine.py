"""What a figure was measured on: CPU flags, threads, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "ray", "mlflow", "sqlalchemy")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, str]:
    """Plain facts of this machine and its libraries."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    words = set(text.split())
    model = next(
        (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": f"{model}, {os.cpu_count()} cores, {' '.join(flag for flag in FLAGS if flag in words) or 'no wide vectors'}",
        "threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
