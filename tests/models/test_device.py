"""Threads, precision and attention follow what the machine can do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from petl_ray.models import choose_precision, use_threads
from petl_ray.models import device as device_module
from petl_ray.models.device import KERNELS_KEPT, choose_attention, keep_few_kernels


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fpu avx512f avx512_bf16", "bf16"), ("fpu avx512f amx_bf16 amx_tile", "bf16"), ("fpu avx2 avx512f", "fp32")],
)
def test_a_cpu_computes_in_bf16_only_if_it_multiplies_bf16(
    flags: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(device_module, "CPU_FACTS", tmp_path / "cpuinfo")
    assert choose_precision(torch.device("cpu")) == precision
    monkeypatch.setattr(device_module, "CPU_FACTS", tmp_path / "nothing")
    assert choose_precision(torch.device("cpu")) == "fp32"


def test_flash_attention_is_left_only_on_a_cpu_below_fp32() -> None:
    assert choose_attention(torch.device("cpu"), "bf16") == "eager"
    assert choose_attention(torch.device("cpu"), "fp32") is None
    assert choose_attention(torch.device("cuda", 0), "bf16") is None


def test_threads_are_set_in_one_place() -> None:
    before = torch.get_num_threads()
    use_threads(2)
    assert torch.get_num_threads() == 2
    use_threads(0)
    assert torch.get_num_threads() == 1
    use_threads(before)


def test_products_of_many_shapes_leave_few_compiled_kernels_behind() -> None:
    everything = _grown_mb(dict.fromkeys(KERNELS_KEPT, "1024"))
    if everything < 100:
        pytest.skip("this CPU's products keep no kernels")
    assert _grown_mb({}) < everything / 2


def test_what_the_environment_says_of_kernels_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = KERNELS_KEPT
    monkeypatch.setenv(mine, "7")
    monkeypatch.setenv(other, "none")  # so that it is as it was afterwards
    monkeypatch.delenv(other)
    keep_few_kernels()
    assert (os.environ[mine], os.environ[other]) == ("7", KERNELS_KEPT[other])


_GROWN = """
import torch
from petl_ray.models.device import keep_few_kernels, use_threads
def taken():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024
keep_few_kernels()
use_threads(1)
weight = torch.ones(64, 64, dtype=torch.bfloat16)
torch.nn.functional.linear(torch.ones(16, 64, dtype=torch.bfloat16), weight)
before = taken()
for rows in range(17, 617):
    torch.nn.functional.linear(torch.ones(rows, 64, dtype=torch.bfloat16), weight)
print(taken() - before)
"""


def _grown_mb(asked: dict[str, str]) -> float:
    """By how much a process grows that multiplies 600 shapes."""
    bare = {name: value for name, value in os.environ.items() if name not in KERNELS_KEPT}
    told = subprocess.run([sys.executable, "-c", _GROWN], capture_output=True, text=True, check=True, env=bare | asked)
    return float(told.stdout)
