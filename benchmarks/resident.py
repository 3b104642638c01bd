"""What a training process takes, measured from within: run in a fresh process, it prints its own peak."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.models import Rows, bank_of, bank_step, peft_step

STEPS = 8


def train_alone(precision: str) -> None:
    """A bare PEFT loop over weights of that precision, under autocast where they are no fp32; prints its peak memory."""
    step = peft_step(Rows.of(8, 32), precision != "fp32", precision=precision)
    for _ in range(STEPS):
        step()
    _print_peak()


def train_together(slots: int, precision: str) -> None:
    """So many slots in one process; prints its peak memory. Passes are as large as a session makes them."""
    bank = bank_of(precision, slots)
    together = 2 if bank.loaded.compute_dtype == torch.float32 else 4
    batches = [Rows.of(8, 32, seed) for seed in range(slots)]
    steps = [bank_step(bank, batches[start : start + together], first=start) for start in range(0, slots, together)]
    for _ in range(STEPS):
        for step in steps:
            step()
    _print_peak()


def _print_peak() -> None:
    # the kernel's mark of this program alone: what getrusage says begins with what its parent had taken
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
