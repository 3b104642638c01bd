"""Threads, precision and attention follow what the machine can do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petl_ray.models import choose_precision, use_threads
from petl_ray.models import device as device_module
from petl_ray.models.device import choose_attention


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
