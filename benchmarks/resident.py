"""What a training process takes, measured from within: run in a fresh process, it prints its own peak."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models import Rows, peft_step

EPOCHS, STEPS = 2, 8


def train_alone(precision: str) -> None:
    """A bare PEFT loop over weights of that precision, under autocast where they are no fp32; prints its peak memory."""
    step = peft_step(Rows.of(8, 32), precision != "fp32", precision=precision)
    for _ in range(STEPS):
        step()
    _print_peak()


def train_together(slots: int, precision: str) -> None:
    """A pack of so many slots, all of them under way, through two rungs: training, validation, checkpoints; prints its
    peak memory. Every trial takes as many steps as the one alone, on as many tokens."""
    from benchmarks import trials  # here, so that what a pack needs is not counted where PEFT is alone

    specs = trials.seeded(trials.recipe(precision, epochs=EPOCHS), slots)
    with trials.driven(slots) as answers:
        for rung, share in enumerate((0.5, 1.0)):
            told = answers([trials.order(number, spec, rung, share) for number, spec in enumerate(specs)])
            steps = {facts.get("steps") for facts in told}
            assert steps == {share * STEPS}, f"trials took {steps} steps: {told}"
    _print_peak()


def _print_peak() -> None:
    # the kernel's mark of this program alone: what getrusage says begins with what its parent had taken
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
