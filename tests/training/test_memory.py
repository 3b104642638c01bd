"""Out of memory: recognised as what it is, and survived with smaller micro-batches and the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from petl_ray.errors import CapacityError, PlanError, TrainingError
from petl_ray.models.faults import is_out_of_memory
from petl_ray.training.memory import TokenBudget
from petl_ray.training.peers import Alone
from petl_ray.training.session import Session, open_session
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe


def _fail_for_real() -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def test_a_failed_allocation_is_told_as_such() -> None:
    with pytest.raises(RuntimeError) as caught:
        _fail_for_real()
    assert is_out_of_memory(caught.value)


def test_the_budget_halves_and_never_reaches_nothing() -> None:
    budget = TokenBudget()
    budget.halve(100)
    assert (budget.tokens, budget.halvings) == (50, 1)
    budget.halve(1)
    assert budget.tokens == 1
    budget.halve(100, occupants=3)
    assert (budget.tokens, budget.together) == (1, 50), "what several held together says nothing of one"


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


def test_those_who_do_not_fit_together_part_and_nobody_is_cut_who_fits_alone(
    tiny_bert: Path, step: PlainStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws by the pass: a batch that is cut into other parts would come to another adapter."""
    specs = {
        key: recipe(locked(tiny_bert), batch_size=rows, method={"kind": "lora", "dropout": 0.2})
        for key, rows in (("a", 8), ("b", 3))
    }
    data, found = step.fetch(dataset(step)), {}
    for crowd in (("a",), ("b",), ("a", "b")):
        session = open_session(specs["a"], 2, 1)
        for key in crowd:
            session.admit(key, specs[key], data)
        forward = session._bank.forward

        def limited(segments, *, hidden=False, forward=forward):  # type: ignore[no-untyped-def]
            if torch.is_grad_enabled() and len(segments) > 1:
                _fail_for_real()
            return forward(segments, hidden=hidden)

        monkeypatch.setattr(session._bank, "forward", limited)
        session.advance(dict.fromkeys(crowd, 0.5))
        found[crowd] = session.budget.halvings, {key: session.occupant(key).state()[0] for key in crowd}
    assert found["a",][0] == found["b",][0] == 0 and found["a", "b"][0] > 0
    for key in ("a", "b"):
        alone, beside = found[key,][1][key], found["a", "b"][1][key]
        assert alone and all(torch.equal(alone[name], beside[name]) for name in alone)


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


def test_validation_that_runs_out_is_halved_too_and_scores_the_same(
    tiny_bert: Path, step: PlainStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, found = recipe(locked(tiny_bert)), []
    for tokens in (None, 60, 1):
        session = open_session(spec, 1, 1)
        session.admit("a", spec, step.fetch(dataset(step)))
        forward = session._bank.forward

        def limited(segments, *, hidden=False, forward=forward, tokens=tokens):  # type: ignore[no-untyped-def]
            if tokens and not torch.is_grad_enabled() and sum(one.input_ids.numel() for one in segments) > tokens:
                _fail_for_real()
            return forward(segments, hidden=hidden)

        monkeypatch.setattr(session._bank, "forward", limited)
        session.aim("a", 0.1)
        turn = session.turn()
        while not turn.arrived and not turn.failed:
            turn = session.turn()
        found.append(turn)
    assert found[0].arrived["a"]["score"] == found[1].arrived["a"]["score"]
    assert found[0].arrived["a"]["loss"] == pytest.approx(found[1].arrived["a"]["loss"], abs=1e-6)
    assert isinstance(found[2].failed["a"], CapacityError) and "one row of" in str(found[2].failed["a"])


def test_whoever_cannot_be_computed_or_validated_ends_alone_and_its_neighbours_are_as_without_it(
    tiny_bert: Path, step: PlainStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose passes fail, and one whose validation does, beside one that trains: in shared passes or not."""
    spec = recipe(locked(tiny_bert), epochs=1)
    alone = open_session(spec, 1, 1)
    alone.admit("good", spec, step.fetch(dataset(step)))
    expected = alone.advance({"good": 1.0})["good"]
    session = open_session(spec, 3, 1)
    for key in ("broken", "good", "mute"):
        session.admit(key, spec, step.fetch(dataset(step)))
        session.aim(key, 1.0 if key != "mute" else 0.5)
    broken, forward = session.occupant("broken"), session._bank.forward

    def breaks(segments, *, hidden=False):  # type: ignore[no-untyped-def]
        if broken.step >= 2 and any(one.slot == broken.slot for one in segments):
            raise IndexError("index out of range in self")
        return forward(segments, hidden=hidden)

    def fails(tokens: int | None = None) -> dict[str, float]:
        raise ValueError("no such score")

    monkeypatch.setattr(session._bank, "forward", breaks)
    monkeypatch.setattr(session.occupant("mute"), "validate", fails)
    arrived: dict[str, dict[str, float]] = {}
    failed: dict[str, Exception] = {}
    while "good" not in arrived:
        turn = session.turn()
        arrived |= turn.arrived
        failed |= turn.failed
        for key in turn.failed:
            session.drop(key)
    assert arrived == {"good": expected}
    do = "Train it again alone, or on another machine, to see whose fault it is."
    assert {key: (type(error), str(error)) for key, error in failed.items()} == {
        "broken": (TrainingError, f"moods: IndexError; index out of range in self. {do}"),
        "mute": (TrainingError, f"moods: ValueError; no such score. {do}"),
    }


@pytest.mark.parametrize("at", ["pass", "validation"])
@pytest.mark.parametrize("fault", ["the device", "a worker of several"])
def test_what_is_nobodys_fault_is_told_as_it_came_and_nobody_is_blamed(
    tiny_bert: Path, step: PlainStep, monkeypatch: pytest.MonkeyPatch, at: str, fault: str
) -> None:
    """A device that is broken breaks every pass; and a worker that ends alone leaves the others waiting for its share."""
    spec = recipe(locked(tiny_bert), epochs=1)
    session = open_session(spec, 2, 1)
    for key in ("a", "b"):
        session.admit(key, spec, step.fetch(dataset(step)))
        session.aim(key, 0.1)
    error = RuntimeError("CUDA error: unspecified launch failure" if fault == "the device" else "shapes do not match")
    if fault != "the device":
        monkeypatch.setattr(session.occupant("b"), "peers", Alone(count=2))
    forward = session._bank.forward

    def breaks(segments, *, hidden=False):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled() == (at == "pass"):
            raise error
        return forward(segments, hidden=hidden)

    monkeypatch.setattr(session._bank, "forward", breaks)
    with pytest.raises(RuntimeError, match=str(error)):
        for _ in range(20):
            assert session.turn().failed == {} or at == "validation"


def test_a_slot_whose_state_does_not_fit_is_refused_and_leaves_its_place(
    tiny_bert: Path, step: PlainStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = recipe(locked(tiny_bert))
    session = open_session(spec, 1, 1)
    with monkeypatch.context() as full:
        full.setattr(session._bank, "fill", lambda *args: _fail_for_real())
        with pytest.raises(CapacityError, match="memory for a"):
            session.admit("a", spec, step.fetch(dataset(step)))
    session.admit("a", spec, step.fetch(dataset(step)))
    assert session.advance({"a": 0.1})["a"]["steps"] > 0


def test_rows_longer_than_the_base_has_positions_get_no_slot(tiny_bert: Path, step: PlainStep) -> None:
    spec = recipe(locked(tiny_bert))
    session = open_session(spec, 1, 1)
    with pytest.raises(PlanError, match="max_length: got 129; this base has 128 positions"):
        session.admit("long", recipe(locked(tiny_bert), max_length=129), step.fetch(dataset(step)))
    session.admit("a", spec, step.fetch(dataset(step)))
