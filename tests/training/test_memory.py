"""Out of memory: recognised as what it is, and survived with smaller micro-batches and the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from petl_ray.errors import CapacityError
from petl_ray.training.memory import TokenBudget, is_out_of_memory
from petl_ray.training.session import Session, open_session
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe


def _fail_for_real() -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def test_a_failed_allocation_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        _fail_for_real()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_budget_halves_and_never_reaches_nothing() -> None:
    budget = TokenBudget()
    budget.halve(100)
    assert (budget.tokens, budget.halvings) == (50, 1)
    budget.halve(1)
    assert budget.tokens == 1


def _session_with_room_for(tokens: int, tiny_bert: Path, step: PlainStep, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session whose forward asks the allocator for more than there is when a pass holds more than `tokens`."""
    spec = recipe(locked(tiny_bert))
    session = open_session(spec, 2, 1)
    session.admit("a", spec, step.fetch(dataset(step)))
    forward = session._bank.forward

    def limited(segments, *, hidden=False):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled() and sum(segment.input_ids.numel() for segment in segments) > tokens:
            _fail_for_real()
        return forward(segments, hidden=hidden)

    monkeypatch.setattr(session._bank, "forward", limited)
    return session


def test_running_out_halves_the_micro_batch_and_keeps_the_global_batch(
    tiny_bert: Path, step: PlainStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = recipe(locked(tiny_bert))
    easy = open_session(spec, 1, 1)
    easy.admit("a", spec, step.fetch(dataset(step)))
    hard = _session_with_room_for(60, tiny_bert, step, monkeypatch)
    expected, found = easy.advance({"a": 0.5})["a"], hard.advance({"a": 0.5})["a"]
    assert hard.budget.halvings >= 1 and hard.budget.tokens is not None and hard.budget.tokens <= 90
    assert found["steps"] == expected["steps"]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_one_row_that_does_not_fit_is_said_plainly(
    tiny_bert: Path, step: PlainStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _session_with_room_for(2, tiny_bert, step, monkeypatch)
    with pytest.raises(CapacityError, match="one row of"):
        session.advance({"a": 0.5})


def test_a_process_short_of_memory_trains_on(tiny_bert: Path, tmp_path: Path) -> None:
    """Nothing is pretended here: the process may not grow, the allocator fails, training goes on in smaller parts."""
    script = """
        import resource, sys
        from pathlib import Path
        from petl_ray.training.session import open_session
        from tests.plainstep import PlainStep
        from tests.training.questions import dataset, locked, recipe
        spec = recipe(locked(Path(sys.argv[1])), batch_size=4096, epochs=1, max_length=16)
        step = PlainStep(Path(sys.argv[2]))
        session = open_session(spec, 1, 1)
        session.admit("a", spec, step.fetch(dataset(step, rows=4200)))
        status = Path("/proc/self/status").read_text()
        now = int(status.split("VmSize:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (now + (150 << 20), resource.RLIM_INFINITY))
        print(session.advance({"a": 1.0})["a"]["loss"], session.budget.halvings)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tiny_bert), str(tmp_path)]
    # Under a limit on addresses, glibc must give freed blocks back instead of keeping them for later.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    loss, halvings = done.stdout.split()
    assert float(loss) > 0 and int(halvings) >= 1
