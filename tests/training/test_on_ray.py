"""Training on several Ray workers: the same steps as one worker takes, the same artifact, the same ways to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from safetensors.torch import load_file

from petl_ray.artifact import Adapter, Dataset
from petl_ray.bank import Bank
from petl_ray.errors import BaseModelError, CapacityError, PetlRayError, RunCancelled
from petl_ray.fingerprint import sha256_of
from petl_ray.models import LockedBase
from petl_ray.training import TrainSpec, on_ray, session, train
from petl_ray.training.train import FILES
from petl_ray.verb import Resources
from tests.plainstep import PlainStep
from tests.training.questions import dataset, recipe

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def moods(root: Path) -> Dataset:
    return dataset(PlainStep(root), rows=60)


class Stopping(PlainStep):
    """A step that is cancelled once its first checkpoint is durable."""

    def save_progress(self, directory: Path, note: Any) -> None:
        super().save_progress(directory, note)
        self.cancelled = True


def _step(root: Path, name: str, workers: int, kind: type[PlainStep] = PlainStep) -> PlainStep:
    return kind(root, name=name, resources=Resources(cpus=1, workers=workers))


def _spec(base: LockedBase, **changes: Any) -> TrainSpec:
    # 60 rows in batches of 7 leave 4 for the last one: shares of unequal size, and micro-batches inside them.
    return recipe(base, batch_size=7, tokens_per_step=64, weight_decay=0.01, **changes)


def test_two_workers_take_the_steps_of_one(base: LockedBase, root: Path, moods: Dataset) -> None:
    one, two = _step(root, "1" * 64, 1), _step(root, "2" * 64, 2)
    alone, spread = train(_spec(base), moods, step=one), train(_spec(base), moods, step=two)
    assert isinstance(spread, Adapter)
    assert spread.about["steps"] == alone.about["steps"]
    a = load_file(one.fetch(alone) / "adapter_model.safetensors")
    b = load_file(two.fetch(spread) / "adapter_model.safetensors")
    assert set(a) == set(b)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4
    card = json.loads((two.fetch(spread) / "card.json").read_text())
    assert card == json.loads((one.fetch(alone) / "card.json").read_text())
    assert "train.validated" in [event for event, _ in two.events]


def test_the_process_that_holds_the_step_loads_no_base(
    base: LockedBase, root: Path, moods: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reserves nothing: the workers, which do, finish what they trained."""

    def load_base(*_: Any) -> None:
        raise AssertionError("a base was loaded where nothing is reserved")

    monkeypatch.setattr(session, "load_base", load_base)
    step = _step(root, "5" * 64, 2)
    adapter = train(_spec(base), moods, step=step)
    assert {path.name for path in step.fetch(adapter).iterdir()} == {*FILES, "history.jsonl"}


@pytest.mark.long
def test_a_cancelled_training_stops_its_workers_and_continues_later(
    base: LockedBase, root: Path, moods: Dataset
) -> None:
    spec = _spec(base, checkpoint_every_s=1e-6, epochs=40)
    with pytest.raises(RunCancelled):
        train(spec, moods, step=_step(root, "3" * 64, 2, Stopping))
    again = _step(root, "3" * 64, 1)
    progress = again.load_progress()
    assert progress is not None and 0 < progress.note["step"] < progress.note["steps"]
    adapter = train(spec, moods, step=again)
    assert isinstance(adapter, Adapter) and adapter.about["steps"] == progress.note["steps"]


def test_more_workers_than_the_cluster_holds_are_refused_before_anything_starts(
    base: LockedBase, root: Path, moods: Dataset
) -> None:
    with pytest.raises(CapacityError, match="64 workers: they need 1 CPU"):
        train(_spec(base), moods, step=_step(root, "4" * 64, 64))


_WORK = on_ray._work


def _work_with_one_starved(config: dict[str, Any]) -> None:
    """What a worker runs; the second has memory for no row at all."""
    if ray.train.get_context().get_world_rank() == 1:

        def starved(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        Bank.forward = starved  # type: ignore[method-assign, assignment]
    _WORK(config)


def _work_with_one_without_base(config: dict[str, Any]) -> None:
    """What a worker runs; on the second's machine the base is not there."""
    if ray.train.get_context().get_world_rank() == 1:

        def gone(*_: Any, **__: Any) -> None:
            raise BaseModelError("base", "not found on this machine")

        on_ray.open_session = gone  # type: ignore[assignment]
    _WORK(config)


@pytest.mark.long
@pytest.mark.parametrize(
    ("work", "kind", "said"),
    [
        (_work_with_one_starved, CapacityError, "moods: memory ran out"),
        (_work_with_one_without_base, BaseModelError, "not found on this machine"),
    ],
    ids=["memory", "base"],
)
def test_what_stops_one_worker_ends_its_group_which_says_so(
    base: LockedBase,
    root: Path,
    moods: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[dict[str, Any]], None],
    kind: type[PetlRayError],
    said: str,
) -> None:
    """Its peer waits for what it owes their step, and would wait for half an hour."""
    monkeypatch.setattr(on_ray, "_work", work)
    step = _step(root, sha256_of(said), 2)
    with pytest.raises(kind, match=said):
        train(_spec(base), moods, step=step)
    assert "train.validated" not in [event for event, _ in step.events]
