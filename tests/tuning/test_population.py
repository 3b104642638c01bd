"""Populations: who copies whom, what is explored, and that all of it follows from scores and seed."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import TypeAdapter

from petl_ray.errors import PlanError
from petl_ray.tuning import SearchSpec
from petl_ray.tuning.domains import Domain, listed
from petl_ray.tuning.population import _moved, chance_of, changeable, donors, explored
from petl_ray.tuning.race import open_race
from petl_ray.tuning.recipe import Recipe
from tests.tuning.fake_training.asking import ask
from tests.tuning.fake_training.spec import MiniSpec
from tests.tuning.test_race import ride

SCORES = {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.6, 4: 0.2, 5: 0.8, 6: 0.3, 7: 0.7}
DOMAINS: dict[str, Any] = {
    "uniform": {"uniform": [0.0, 0.1]},
    "log": {"loguniform": [1e-5, 1e-2]},
    "steps": {"quniform": [0.0, 0.3, 0.05]},
    "whole": {"integer": [1, 16]},
    "list": [1e-4, 3e-4, 1e-3],
    "mixed": [None, 0.5, "auto", 2.0],
}


def domain(name: str) -> Domain:
    found: Domain = TypeAdapter(Domain).validate_python(DOMAINS[name])
    return found


def test_the_worst_copy_from_as_many_of_the_best_and_trial_0_never_does() -> None:
    pairs = donors("max", SCORES, 0.25, seed=0, rung=1)
    assert set(pairs) == {4} and pairs[4] in (1, 5)  # trial 0 is the worst, but stays what it is
    assert set(donors("min", SCORES, 0.25, seed=0, rung=1)) == {1, 5}
    assert set(donors("min", SCORES, 0.25, seed=0, rung=1).values()) <= {0, 4}  # it may be copied from
    assert set(donors("max", {0: 0.5, 1: 0.4}, 0.1, seed=0, rung=0)) == {1}  # at least one


def test_nobody_copies_what_is_not_better_or_when_alone() -> None:
    assert donors("max", dict.fromkeys(range(8), 0.5), 0.5, seed=0, rung=0) == {}
    assert donors("max", {3: 0.5}, 0.5, seed=0, rung=0) == {}


def test_the_choice_follows_from_seed_rung_and_number() -> None:
    wide = {number: float(number) for number in range(40)}
    first = donors("max", wide, 0.25, seed=1, rung=0)
    assert donors("max", dict(reversed(wide.items())), 0.25, seed=1, rung=0) == first
    assert donors("max", wide, 0.25, seed=2, rung=0) != first != donors("max", wide, 0.25, seed=1, rung=1)


@given(some.sampled_from(sorted(DOMAINS)), some.integers(0, 1 << 30), some.floats(-0.5, 20.0))
def test_a_moved_value_stays_inside_its_domain(name: str, seed: int, now: float) -> None:
    moved = _moved(domain(name), now, random.Random(seed))
    values = listed(domain(name))
    if values is not None:
        assert moved in [value for value in values if isinstance(value, int | float)]
    else:
        assert moved is not None and domain(name).low <= moved <= domain(name).high  # type: ignore[union-attr]


def test_most_values_move_a_fifth_down_or_up_and_some_are_drawn_anew() -> None:
    moved = [_moved(domain("log"), 1e-3, random.Random(seed)) for seed in range(400)]
    near = [value for value in moved if value in (8e-4, 1.2e-3)]
    assert 250 < len(near) < 350 and len(set(near)) == 2
    assert {_moved(domain("list"), 3e-4, random.Random(seed)) for seed in range(100)} == {1e-4, 3e-4, 1e-3}
    assert {_moved(domain("uniform"), 0.0, random.Random(seed)) for seed in range(20)} != {0.0}
    assert _moved(domain("mixed"), None, random.Random(0)) is None


def test_at_the_end_of_its_domain_a_value_moves_back() -> None:
    assert all(value != 1e-2 for value in (_moved(domain("log"), 1e-2, random.Random(seed)) for seed in range(50)))


def test_exploring_adds_a_phase_to_what_the_donor_went_through() -> None:
    recipe = Recipe(ask())
    space = changeable(recipe, ask().space)
    assert list(space) == ["learning_rate"]
    overrides, spec = explored(recipe, {"method.rank": 4}, space, 0.25, chance_of(0, 1, 3))
    again, later = explored(recipe, overrides, space, 0.5, chance_of(0, 2, 3))
    assert again["method.rank"] == 4 and later == recipe.apply(again)
    phases: Any = again["phases"]
    assert phases[0] == overrides["phases"][0] and [phase["start"] for phase in phases] == [0.25, 0.5]  # type: ignore[index]
    assert isinstance(later, MiniSpec) and later.learning_rate == MiniSpec().learning_rate
    assert len({MiniSpec().learning_rate, *(phase["learning_rate"] for phase in phases)}) == 3
    assert isinstance(spec, MiniSpec) and later.begun(50, 100) == spec


def test_a_change_that_the_recipe_refuses_is_left_out() -> None:
    from petl_ray.training import TrainSpec

    base = {"pinned": {"uri": "package:x", "digest": "0" * 64}, "precision": "fp32"}
    fields = {
        "lora_plus": {"loguniform": [1.0, 16.0]},
        "weight_decay": [0.0, 0.01],
        "method.kind": ["lora", "bottleneck"],
    }
    spec = SearchSpec.model_validate(
        {"recipe": TrainSpec.model_validate({"base": base}), "space": fields, "scheduler": "pbt"}
    )
    recipe = Recipe(spec)
    space = changeable(recipe, spec.space)
    found = [explored(recipe, {"method.kind": "bottleneck"}, space, 0.5, chance_of(0, 0, n))[0] for n in range(20)]
    assert all("lora_plus" not in phase for one in found for phase in one.get("phases", ()))  # type: ignore[union-attr]
    assert any(one.get("phases") == [{"start": 0.5, "weight_decay": 0.01}] for one in found)


def test_a_space_without_anything_that_may_change_on_the_way_is_refused() -> None:
    with pytest.raises(PlanError, match="learning_rate"):
        open_race(ask(scheduler="pbt", space={"method.rank": [2, 4]}), lambda number: None)


def test_a_population_is_asked_at_once_and_its_lines_say_whom_they_copied() -> None:
    race = ride(ask(scheduler="pbt", trials=12, algorithm="random"))
    assert len(race.candidates) == 12 and not race.candidates[0].parents
    copied = [candidate for candidate in race.candidates if candidate.parents]
    assert copied
    for candidate in copied:
        row = candidate.row()
        assert set(row["parents"]) <= {"0.125", "0.25", "0.5"} and len(row["scores"]) == 4
        assert row["overrides"]["phases"][-1]["start"] >= max(candidate.parents)
        assert candidate.key == f"{candidate.name}.{len(candidate.parents)}"
    last = race.recipe.apply(race.winner().overrides)
    assert last == race.winner().spec


def test_one_that_diverges_leaves_the_population_and_is_not_replaced() -> None:
    race = ride(ask(scheduler="pbt"), seed=2, facts=lambda one: {"diverged": 1.0} if one.number == 3 else {})
    assert [candidate.phase for candidate in race.candidates].count("finished") == 7 == len(race.candidates) - 1
