"""A population of real trainings: the overrides of a trial, trained alone from the start, give the trial's very weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Adapter, Dataset
from petl_ray.spec import with_overrides
from petl_ray.training import TrainSpec, train
from petl_ray.training.session import Session, open_session
from petl_ray.tuning import SearchSpec
from petl_ray.tuning.ledger import Ledger, read_files, write_files
from petl_ray.tuning.race import Race, open_race
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def spec(tiny_bert: Path) -> SearchSpec:
    space = {
        "learning_rate": {"loguniform": [1e-3, 2e-2]},
        "weight_decay": {"uniform": [0.01, 0.2]},
        "head_learning_rate": {"loguniform": [1e-3, 2e-2]},
        "lora_plus": [1.0, 4.0, 16.0],
        "method.rank": [2, 5],
        "method.dropout": [0.0, 0.1],
    }
    start = recipe(locked(tiny_bert), keep="last", epochs=1.5, metric="loss")
    fields = {"trials": 6, "rungs": [0.2, 0.4, 0.7, 1.0], "quantile": 0.5, "algorithm": "random", "scheduler": "pbt"}
    return SearchSpec.model_validate({"recipe": start, "space": space, **fields})


def ride(race: Race, ledger: Ledger, session: Session, data: Path, out: Path) -> dict[int, bytes]:
    """Train a race rung by rung through checkpoints, two trials side by side; the weights of who came to the end."""
    ends = {}
    while not race.over:
        pair = race.ready()[:2]
        for one in pair:
            race.start(one.number)
            checkpoint = ledger.checkpoint(one.number) if one.rung else None
            if checkpoint is not None:
                write_files(out / one.key / "before", checkpoint[1])
            session.admit(one.key, one.spec, data, out / one.key / "before" if checkpoint else None)
        share = race.spec.rungs[pair[0].rung]
        for one, facts in zip(
            pair, session.advance(dict.fromkeys((one.key for one in pair), share)).values(), strict=True
        ):
            home = out / one.key / str(one.rung)
            session.save(one.key, home)
            if share == 1.0:
                session.export(one.key, home)
                ends[one.number] = (home / WEIGHTS).read_bytes()
            session.drop(one.key)
            ledger.reached(one.number, one.rung, facts, None if share == 1.0 else read_files(home))
            race.heard(one.number, facts)
            ledger.copied(race.copies)
            race.copies.clear()
    assert race.error is None
    return ends


def retrained(overrides: dict[str, Any], spec: SearchSpec, rows: Dataset, step: PlainStep) -> bytes:
    alone = with_overrides(spec.template(), overrides)
    assert isinstance(alone, TrainSpec)
    adapter = train(alone, rows, step=step)
    assert isinstance(adapter, Adapter)
    return (step.fetch(adapter) / WEIGHTS).read_bytes()


def test_overrides_alone_retrain_every_member_of_a_population_bit_for_bit(
    spec: SearchSpec, step: PlainStep, tmp_path: Path
) -> None:
    rows = dataset(step)
    race = open_race(spec, lambda number: None)
    session = open_session(spec.template(), 2, 1)
    ends = ride(race, Ledger(step), session, step.fetch(rows), tmp_path / "session")
    lives = [candidate.life for candidate in race.candidates]
    phases = [len(candidate.overrides.get("phases", ())) for candidate in race.candidates]  # type: ignore[arg-type]
    assert max(lives) >= 2 and max(phases) >= 2, "trials copied again and again, and from one that had copied"
    for candidate in race.candidates:
        again = PlainStep(tmp_path / f"again-{candidate.number}")
        (again.root).mkdir()
        (again.root / "objects").symlink_to(step.root / "objects")
        assert retrained(candidate.overrides, spec, rows, again) == ends[candidate.number], candidate.row()
    assert len(set(ends.values())) == len(ends)
    winner = race.winner()
    plain = {path: value for path, value in winner.overrides.items() if path != "phases"}
    if plain != winner.overrides:
        again = PlainStep(tmp_path / "plain")
        again.root.mkdir()
        (again.root / "objects").symlink_to(step.root / "objects")
        assert retrained(plain, spec, rows, again) != ends[winner.number]
