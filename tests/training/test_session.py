"""Sessions: slots side by side, each as if alone; continued bit for bit; refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from petl_ray.errors import (
    CapacityError,
    ClaimLost,
    CorruptionError,
    DataError,
    NotFoundError,
    PetlRayError,
    PlanError,
)
from petl_ray.models import LockedBase
from petl_ray.training import session as session_module
from petl_ray.training.batching import LENGTH_STEP
from petl_ray.training.checkpoint import read_checkpoint, write_checkpoint
from petl_ray.training.occupant import Occupant
from petl_ray.training.rounds import plan_rounds
from petl_ray.training.session import Session, open_session
from petl_ray.training.sharing import Sharing
from petl_ray.verb import SlotSession
from tests.plainstep import PlainStep
from tests.training.passes import passes_of
from tests.training.questions import dataset, locked, recipe


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    step = PlainStep(tmp_path_factory.mktemp("halves"))
    return step.fetch(dataset(step, task="halves", labels=2, rows=40))


def _weights(session: Session, key: str, directory: Path) -> dict[str, torch.Tensor]:
    session.save(key, directory)
    return read_checkpoint(directory)[0]


def _distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a if name.startswith("weights/"))


def test_a_session_is_what_a_search_drives(base: LockedBase) -> None:
    session: SlotSession = open_session(recipe(base), 1, 1)
    assert session.estimate(recipe(base), 3)["trained_share"] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_side_by_side_each_slot_trains_as_if_alone_bit_for_bit(
    tiny_bert: Path, moods: Path, halves: Path, tmp_path: Path, precision: str
) -> None:
    base = locked(tiny_bert, precision)
    questions: dict[str, tuple[Any, Path]] = {
        "lora": (recipe(base, method={"kind": "lora", "rank": 4, "dropout": 0.1}), moods),
        "other": (recipe(base, method={"kind": "lora", "rank": 7, "targets": "all-linear"}, batch_size=4), moods),
        "bottleneck": (recipe(base, method={"kind": "bottleneck", "size": 8}, batch_size=4, seed=3), halves),
        "head": (recipe(base, method={"kind": "head"}, learning_rate=1e-2, batch_size=1), moods),
    }
    aims = {"lora": 0.25, "other": 0.1, "bottleneck": 0.5, "head": 0.05}
    together = open_session(recipe(base), 4, 1)
    for key, (spec, data) in questions.items():
        together.admit(key, spec, data)
    rule = Sharing.of(together.loaded)
    rounds = plan_rounds([together.occupant(key) for key in questions], None, rule)
    assert (len(rounds) < len(questions)) == rule.shared, "some of them share a pass where rows are independent"
    found = together.advance(aims)
    for key, (spec, data) in questions.items():
        alone = open_session(recipe(base), 1, 1)
        alone.admit(key, spec, data)
        assert alone.advance({key: aims[key]})[key] == found[key]
        assert found[key]["steps"] > 4
        one, other = (_weights(each, key, tmp_path / f"{key}-{name}") for name, each in (("a", together), ("b", alone)))
        assert set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) for name in one), key


def test_who_cannot_go_on_ends_alone(base: LockedBase, moods: Path) -> None:
    session = open_session(recipe(base), 2, 1)
    for key in ("lost", "well"):
        session.admit(key, recipe(base), moods)
        session.aim(key, 0.2)

    def watcher(occupant: Occupant) -> None:
        if occupant.step == 2:
            raise ClaimLost("claim", "gone")

    session.watch("lost", watcher)
    failed: dict[str, PetlRayError] = {}
    arrived: dict[str, Any] = {}
    while not arrived:
        turn = session.turn()
        failed |= turn.failed
        arrived |= turn.arrived
    assert list(failed) == ["lost"] and isinstance(failed["lost"], ClaimLost)
    assert session.occupant("lost").step == 2
    alone = open_session(recipe(base), 1, 1)
    alone.admit("well", recipe(base), moods)
    assert arrived["well"] == alone.advance({"well": 0.2})["well"]


def test_a_slot_that_diverges_stops_alone(base: LockedBase, moods: Path, tmp_path: Path) -> None:
    session = open_session(recipe(base), 2, 1)
    session.admit("sick", recipe(base), moods)
    session.save("sick", tmp_path / "well")
    tensors, facts = read_checkpoint(tmp_path / "well")
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name][0, 0] = float("inf")
    write_checkpoint(tmp_path / "sick", tensors, facts)
    session.drop("sick")
    session.admit("sick", recipe(base), moods, tmp_path / "sick")
    session.admit("well", recipe(base), moods)
    found = session.advance({"sick": 0.5, "well": 0.5})
    assert found["sick"] == {"diverged": 1.0}
    alone = open_session(recipe(base), 1, 1)
    alone.admit("well", recipe(base), moods)
    assert found["well"]["loss"] == pytest.approx(alone.advance({"well": 0.5})["well"]["loss"], abs=1e-5)


@pytest.mark.parametrize("method", [{"kind": "lora", "dropout": 0.2}, {"kind": "bottleneck"}, {"kind": "head"}])
def test_a_saved_slot_continues_bit_for_bit(
    base: LockedBase, moods: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    spec = recipe(base, method=method)
    session = open_session(spec, 2, 1)
    session.admit("whole", spec, moods)
    session.advance({"whole": 0.3})
    session.save("whole", tmp_path / "middle")
    expected = session.advance({"whole": 1.0})["whole"]
    later = open_session(spec, 1, 1)
    later.admit("again", spec, moods, tmp_path / "middle")
    assert later.advance({"again": 1.0})["again"] == expected
    a, b = _weights(session, "whole", tmp_path / "a"), _weights(later, "again", tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a) and set(a) == set(b)


@pytest.mark.parametrize("changes", [{"tokens_per_step": 40}, {"batch_size": 2, "gradient_accumulation": 4}])
def test_micro_batches_change_nothing_but_rounding(
    base: LockedBase, moods: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain, cut = recipe(base, weight_decay=0.01), recipe(base, weight_decay=0.01, **changes)
    session = open_session(plain, 2, 1)
    session.admit("plain", plain, moods)
    session.admit("cut", cut, moods)
    rule = Sharing.of(session.loaded)
    rounds = {key: len(plan_rounds([session.occupant(key)], None, rule)) for key in ("cut", "plain")}
    assert rounds["cut"] > 1 == rounds["plain"]
    found = session.advance({"plain": 0.4})["plain"]["loss"], session.advance({"cut": 0.4})["cut"]["loss"]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert _distance(_weights(session, "plain", tmp_path / "a"), _weights(session, "cut", tmp_path / "b")) < 2e-5


@pytest.mark.parametrize(("batch_size", "step"), [(4, LENGTH_STEP), (32, 1)], ids=["small", "large"])
def test_no_pass_is_longer_than_the_bucket_of_its_longest_row(
    base: LockedBase, moods: Path, batch_size: int, step: int
) -> None:
    """Steps that keep the device busy by themselves are not padded for anybody's sake."""
    specs = [recipe(base, batch_size=batch_size, seed=seed, max_length=21) for seed in (0, 1)]
    session = open_session(specs[0], 2, 1)
    for key, spec in zip("ab", specs, strict=True):
        session.admit(key, spec, moods)
        session.aim(key, 1.0)
    with passes_of(session) as passes:
        for _ in range(5):
            session.turn()
    session.close()
    found = [
        (
            max(segment.input_ids.shape[1] for segment in segments),
            max(int(segment.attention_mask.sum(1).max()) for segment in segments),
        )
        for segments in passes
    ]
    assert all(width == min(21, -(-longest // step) * step) for width, longest in found), found
    assert len({longest for _, longest in found}) > 1


def test_lora_plus_steps_b_further_than_a(base: LockedBase, moods: Path) -> None:
    """AdamW's first step is as long as the rate, whatever the gradient; B is the one that has a gradient then."""
    moved = {}
    for ratio in (1.0, 8.0):
        spec = recipe(base, lora_plus=ratio, warmup_share=0.0, schedule="constant")
        session = open_session(spec, 1, 1)
        session.admit("a", spec, moods)
        before = session._bank.state(0)
        session.aim("a", 1.0)
        session.turn()
        after = session._bank.state(0)
        moved[ratio] = {name: float((after[name] - before[name]).abs().max()) for name in before}
    for name, step in moved[1.0].items():
        assert moved[8.0][name] == pytest.approx(step * (8.0 if "lora_B" in name else 1.0), rel=1e-2), name


def test_gradient_checkpointing_changes_nothing(base: LockedBase, moods: Path) -> None:
    losses = []
    for again in (False, True):
        spec = recipe(base, gradient_checkpointing=again)
        session = open_session(spec, 1, 1)
        session.admit("a", spec, moods)
        losses.append(session.advance({"a": 0.3})["a"]["loss"])
        session.close()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_estimates_count_what_is_trained(base: LockedBase, moods: Path) -> None:
    session = open_session(recipe(base), 1, 1)
    session.admit("a", recipe(base), moods)
    estimate = session.estimate(recipe(base), 3)
    assert estimate["trained_share"] == pytest.approx(session.trained_share("a"))
    double = session.estimate(recipe(base, method={"kind": "lora", "rank": 16}), 3)
    assert double["trained_share"] > 1.8 * estimate["trained_share"]
    assert session.estimate(recipe(base, batch_size=64), 3)["memory_bytes"] > estimate["memory_bytes"]


def test_slots_are_refused_where_they_do_not_fit(
    base: LockedBase, moods: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    session = open_session(recipe(base), 1, 1)
    with pytest.raises(PlanError, match="base"):
        session.admit("other", recipe(base.model_copy(update={"precision": "bf16"})), moods)
    session.admit("a", recipe(base), moods)
    with pytest.raises(CapacityError, match="slots"):
        session.admit("b", recipe(base), moods)
    with pytest.raises(PlanError, match="slot already"):
        session.admit("a", recipe(base), moods)
    with pytest.raises(NotFoundError, match="Known: a"):
        session.drop("b")
    session.save("a", tmp_path / "a")
    session.drop("a")
    with pytest.raises(CorruptionError, match="foreign"):
        session.admit("b", recipe(base, seed=9), moods, tmp_path / "a")
    session.admit("b", recipe(base, seed=9), moods)


def test_rows_without_a_side_or_of_another_task_are_refused(base: LockedBase, moods: Path, tmp_path: Path) -> None:
    for name in ("train.jsonl", "card.json"):
        (tmp_path / name).write_bytes((moods / name).read_bytes())
    (tmp_path / "validation.jsonl").write_text("")
    session = open_session(recipe(base), 1, 1)
    with pytest.raises(DataError, match=r"validation\.jsonl: no rows"):
        session.admit("a", recipe(base), tmp_path)
    (tmp_path / "validation.jsonl").write_text('{"id": "1", "text": "good", "label": 7}\n')
    with pytest.raises(DataError, match="label 7"):
        session.admit("a", recipe(base), tmp_path)
    (tmp_path / "card.json").write_text('{"task": "x", "task_type": "causal_lm"}')
    with pytest.raises(DataError, match="the data are for causal_lm"):
        session.admit("a", recipe(base), tmp_path)


def test_closing_a_session_leaves_the_base_as_it_was(base: LockedBase, moods: Path) -> None:
    session = open_session(recipe(base), 1, 1)
    before = session.loaded.weights_digest()
    session.admit("a", recipe(base, method={"kind": "bottleneck"}), moods)
    session.advance({"a": 0.3})
    session.close()
    assert session.loaded.weights_digest() == before


def test_only_the_newest_datasets_and_those_in_use_stay_tokenised_where_they_are_many(
    base: LockedBase, moods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search over lengths has as many as there are lengths; one that comes again is read again, with the same bits."""
    reads, read = [], session_module.read_rows

    def counted(*asked: Any) -> Any:
        reads.append(asked[3])
        return read(*asked)

    monkeypatch.setattr(session_module, "read_rows", counted)
    lengths = [16, 18, 20, 22, 24, 26, 28]
    session, scores = open_session(recipe(base), slots=2, threads=1), []
    session.admit("stays", recipe(base, max_length=14), moods)
    session.admit("comes", recipe(base, max_length=16), moods)
    session.drop("comes")
    assert reads == [14, 16]
    monkeypatch.setattr(session_module, "_TOKENS_KEPT", 3 * session.occupant("stays").rows.tokens)
    for length in [*lengths, lengths[0]]:
        session.admit("comes", recipe(base, max_length=length, method={"kind": "head"}), moods)
        scores.append(session.advance({"comes": 0.5})["comes"]["loss"])
        session.drop("comes")
    kept = [length for _, length, _ in session._rows]
    assert reads == [14, 16, *lengths[1:], lengths[0]], "read again only where it was forgotten"
    assert kept[0] == 14 and kept[-1] == 16 and len(kept) <= 4
    assert {id(rows) for rows in session._rows.values()} >= {key[1] for key in session._prefixes._known}
    assert scores[0] == scores[-1]
