"""Phases: rates and decay that change on the way, and which checkpoints may be continued across a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from petl_ray.errors import CorruptionError
from petl_ray.fingerprint import sha256_of
from petl_ray.models import LockedBase
from petl_ray.training import TrainSpec
from petl_ray.training.checkpoint import read_checkpoint
from petl_ray.training.session import Session, open_session
from tests.training.questions import recipe


@pytest.fixture
def session(base: LockedBase) -> Session:
    return open_session(recipe(base), 1, 1)


def _trained(
    session: Session, spec: TrainSpec, data: Path, until: float, home: Path, checkpoint: Path | None = None
) -> dict[str, torch.Tensor]:
    session.admit("a", spec, data, checkpoint)
    session.advance({"a": until})
    session.save("a", home)
    session.drop("a")
    return {name: one for name, one in read_checkpoint(home)[0].items() if not name.startswith("best/")}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


CHANGES = [{"learning_rate": 1e-3}, {"head_learning_rate": 1e-3}, {"lora_plus": 8.0}, {"weight_decay": 0.5}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_phase_changes_what_comes_after_its_start_and_nothing_before(
    base: LockedBase, moods: Path, session: Session, tmp_path: Path, change: dict[str, float]
) -> None:
    plain, phased = recipe(base), recipe(base, phases=[{"start": 0.5, **change}])
    halves = [_trained(session, spec, moods, 0.5, tmp_path / name) for spec, name in ((plain, "p"), (phased, "q"))]
    assert _equal(*halves)
    wholes = [_trained(session, spec, moods, 0.6, tmp_path / name) for spec, name in ((plain, "P"), (phased, "Q"))]
    assert not _equal(*wholes)
    crossed = _trained(session, phased, moods, 0.6, tmp_path / "crossed", tmp_path / "p")
    assert _equal(crossed, wholes[1]), "a checkpoint of the common past continues as if trained in one go"


def test_a_phase_that_repeats_what_holds_changes_nothing(
    base: LockedBase, moods: Path, session: Session, tmp_path: Path
) -> None:
    spec = recipe(base, head_learning_rate=0.01, weight_decay=0.1, lora_plus=2.0)
    same = {"learning_rate": 5e-3, "head_learning_rate": 0.01, "weight_decay": 0.1, "lora_plus": 2.0}
    again = spec.model_copy(update={"phases": recipe(base, phases=[{"start": 0.3, **same}]).phases})
    ends = [_trained(session, one, moods, 0.6, tmp_path / name) for one, name in ((spec, "a"), (again, "b"))]
    assert _equal(*ends)


def test_a_checkpoint_is_continued_exactly_where_the_past_is_the_same(
    base: LockedBase, moods: Path, session: Session, tmp_path: Path
) -> None:
    early, late = {"start": 0.25, "learning_rate": 1e-3}, {"start": 0.5, "learning_rate": 2e-3}
    _trained(session, recipe(base, phases=[early]), moods, 0.5, tmp_path / "half")
    foreign = ([], [late], [{**early, "learning_rate": 2e-3}], [{**early, "start": 0.3}])
    for phases in foreign:
        with pytest.raises(CorruptionError, match="foreign"):
            session.admit("a", recipe(base, phases=phases), moods, tmp_path / "half")
    for phases in ([early], [early, late], [early, {**late, "start": 0.9}]):
        session.admit("a", recipe(base, phases=phases), moods, tmp_path / "half")
        session.drop("a")


def test_what_holds_at_a_step_is_what_the_phases_before_it_have_left(base: LockedBase) -> None:
    phases: list[dict[str, Any]] = [
        {"start": 0.2, "learning_rate": 0.1, "weight_decay": 0.2},
        {"start": 0.6, "learning_rate": 0.3},
    ]
    spec = recipe(base, phases=phases)
    held = [spec.in_force(step, 10) for step in (1, 2, 5, 6, 9)]
    assert [one.learning_rate for one in held] == [5e-3, 0.1, 0.1, 0.3, 0.3]
    assert [one.weight_decay for one in held] == [0.0, 0.2, 0.2, 0.2, 0.2]
    assert [len(spec.begun(step, 10).phases) for step in (0, 2, 3, 6, 7)] == [0, 0, 1, 1, 2]


def test_phases_bear_identity_and_none_leaves_the_old_name(base: LockedBase) -> None:
    assert sha256_of(recipe(base)) == sha256_of(recipe(base, phases=[]))
    assert "phases" not in recipe(base).identity()
    assert sha256_of(recipe(base)) != sha256_of(recipe(base, phases=[{"start": 0.5, "lora_plus": 2.0}]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phases": [{"start": 0.5}, {"start": 0.5}]}, "phases: got the starts [0.5, 0.5]"),
        ({"phases": [{"start": 0.0}]}, "greater than 0"),
        ({"phases": [{"start": 0.5, "batch_size": 4}]}, "Extra inputs"),
        (
            {"phases": [{"start": 0.5, "lora_plus": 2.0}], "method": {"kind": "head"}},
            "lora_plus: got 2 with method head",
        ),
    ],
)
def test_impossible_phases_are_refused(base: LockedBase, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(base, **changes)
    assert words in str(caught.value)
