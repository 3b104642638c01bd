import json
import math
import random
from typing import Any

import pytest
from pydantic import ValidationError

from petl_ray.errors import CapacityError, PlanError, TrainingError
from petl_ray.tuning import SearchSpec
from petl_ray.tuning.race import Race, open_race
from tests.tuning.fake_training.asking import ask
from tests.tuning.fake_training.spec import MiniSpec


def score(spec: Any, share: float) -> float:
    return (1 - 0.1 * abs(math.log10(spec.learning_rate) + 2.5)) * share - spec.seed


def ride(spec: SearchSpec, seed: int | None = None, **answers: Any) -> Race:
    """Hear one ready configuration after the other; with `seed`, several under way and heard in any order."""
    race = open_race(spec, lambda number: None)
    order, under_way = random.Random(seed), []
    while not race.over or under_way:
        for candidate in race.unweighed():
            race.weighed(candidate.number, answers["weigh"](candidate.spec))
        for candidate in race.ready()[: 1 if seed is None else order.randint(0, 3)]:
            race.start(candidate.number)
            under_way.append(candidate)
        if under_way:
            candidate = under_way.pop(0 if seed is None else order.randrange(len(under_way)))
            facts = answers.get("facts", lambda candidate: {})(candidate)
            share = spec.rungs[candidate.rung]
            race.heard(candidate.number, facts or {"score": score(candidate.spec, share)})
    return race


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median", "pbt", "none"])
@pytest.mark.parametrize("algorithm", ["optuna", "random"])
def test_a_race_does_not_depend_on_who_arrives_first(scheduler: str, algorithm: str) -> None:
    spec = ask(scheduler=scheduler, algorithm=algorithm, trials=14)
    races = [ride(spec, seed) for seed in (None, 1, 2, 3)]
    tables = [[candidate.row() for candidate in race.candidates] for race in races]
    assert tables[0] == tables[1] == tables[2] == tables[3]
    assert len(tables[0]) == 14
    states = {row["state"] for row in tables[0]}
    assert states == ({"finished"} if scheduler in ("none", "pbt") else {"finished", "stopped"})


def test_trial_0_is_the_recipe_and_runs_to_the_end_however_bad() -> None:
    race = ride(ask(MiniSpec(learning_rate=0.9)))
    first = race.candidates[0]
    assert first.overrides == {} and first.phase == "finished" and list(first.scores) == [0.125, 0.25, 0.5, 1.0]
    assert race.winner().number != 0


def test_where_all_score_alike_their_share_goes_on_by_lot_and_a_resumed_race_draws_the_same() -> None:
    """A few steps in, every trial may answer with the commonest label: those that have moved least, which will learn
    nothing, have the lowest loss then, and a grid asks for all of one value before it asks for the next."""
    grid = {"method.rank": [2, 4, 8, 16], "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 3e-2, 6e-2]}

    def facts(candidate: Any) -> dict[str, float]:
        rate = candidate.spec.learning_rate
        learns = candidate.rung > 0 and 1e-3 <= rate <= 6e-3
        return {"score": 0.8 if learns else 0.49, "loss": rate}

    finished = []
    for seed, order in ((0, None), (0, 4), (1, None)):
        spec = ask(space=grid, algorithm="grid", trials=32, generation=32, rungs=(0.1, 0.4, 1.0), reduction=4.0)
        race = ride(spec.model_copy(update={"seed": seed}), order, facts=facts)
        assert [len(one.scores) for one in race.candidates].count(1) in (23, 24), "eight of 32 go on, and the recipe"
        assert race.winner().scores[1.0] == 0.8
        finished.append([one.number for one in race.candidates if one.phase == "finished"])
        asked = [one for one in race.candidates if len(one.scores) > 1 and one.number]
        assert len({one.spec.learning_rate for one in asked}) >= 4, "from all over the grid"
    assert finished[0] == finished[1] != finished[2]


def test_of_equal_scores_the_lowest_number_wins() -> None:
    race = ride(ask(scheduler="none"), facts=lambda candidate: {"score": 0.5})
    assert race.winner().number == 0


def test_less_is_better_where_the_metric_is_a_loss() -> None:
    race = ride(
        ask(MiniSpec(metric="loss"), scheduler="none"), facts=lambda c: {"score": abs(c.spec.learning_rate - 0.01)}
    )
    assert race.winner().scores[1.0] == min(candidate.scores[1.0] for candidate in race.candidates)


def test_what_costs_too_much_is_rejected_and_replaced_before_it_trains() -> None:
    spec = ask(limits={"trained_share": 0.008}, trials=12, algorithm="random")
    weigh = {"weigh": lambda spec: {"trained_share": spec.method.rank / 1000, "memory_bytes": 1}}
    races = [ride(spec, seed, **weigh) for seed in (None, 4)]
    rows = [candidate.row() for candidate in races[0].candidates]
    rejected = [row for row in rows if row["state"] == "rejected"]
    assert rejected and all(row["overrides"]["method.rank"] == 16 and not row["scores"] for row in rejected)
    assert "over limits.trained_share" in rejected[0]["reason"]
    assert len(rows) - len(rejected) == 12
    assert rows == [candidate.row() for candidate in races[1].candidates]


def test_a_default_over_the_limits_ends_the_search_with_the_limit_named() -> None:
    race = ride(ask(limits={"memory_bytes": 10}), weigh=lambda spec: {"trained_share": 0.1, "memory_bytes": 11})
    assert isinstance(race.error, PlanError) and "limits.memory_bytes 10" in str(race.error)


def test_a_default_that_diverges_ends_the_search() -> None:
    race = ride(ask(), facts=lambda candidate: {"diverged": 1.0} if candidate.number == 0 else {})
    assert isinstance(race.error, TrainingError)


def test_a_default_that_has_no_room_here_is_no_fault_of_the_plan() -> None:
    for why, kind in (("memory", CapacityError), ("fault", TrainingError)):
        bad = {"refused": "one row of 512 tokens", "only_here": why}
        race = ride(ask(), facts=lambda candidate, bad=bad: bad if candidate.number == 0 else {})
        assert type(race.error) is kind and "one row of 512 tokens" in str(race.error)


def test_others_that_diverge_or_are_refused_are_told_apart_and_do_not_stop_the_search() -> None:
    bad = {3: {"diverged": 1.0}, 5: {"refused": "it does not fit"}}
    race = ride(ask(), seed=5, facts=lambda candidate: bad.get(candidate.number, {}))
    assert [race.candidates[number].phase for number in bad] == ["diverged", "rejected"]
    assert race.candidates[5].reason == "it does not fit"
    assert race.winner().phase == "finished"


def test_a_space_smaller_than_the_trials_ends_early_and_trains_nothing_twice() -> None:
    race = ride(ask(space={"method.rank": [2, 4, 8]}, trials=16, algorithm="random"))
    assert sorted(c.spec.method.rank for c in race.candidates) == [2, 4, 8]  # 8 is the recipe's own


def test_a_grid_runs_whole_or_says_how_many_trials_it_needs() -> None:
    space = {"method.rank": [2, 4], "seed": [0, 1]}
    race = ride(ask(space=space, trials=5, algorithm="grid", scheduler="none"))
    assert [candidate.overrides for candidate in race.candidates[1:3]] == [
        {"method.rank": 2, "seed": 0},
        {"method.rank": 2, "seed": 1},
    ]
    with pytest.raises(PlanError, match="5"):
        open_race(ask(space=space, trials=4, algorithm="grid"), lambda number: None)
    with pytest.raises(ValidationError, match="countable"):
        ask(algorithm="grid")


def test_a_path_that_leads_nowhere_is_a_plan_error() -> None:
    for path in ("method.rnak", "learning_rates", "method.rank.deep"):
        with pytest.raises(PlanError, match=path.split(".")[0]):
            open_race(ask(space={path: [1, 2]}), lambda number: None)


def test_a_kind_may_decide_which_fields_fit_and_what_does_not_fit_is_rejected() -> None:
    space = {"method.kind": ["lora", "bottleneck"], "method.size": [4, 8]}
    race = ride(ask(space=space, trials=3, algorithm="random"))
    states = {
        (row["overrides"].get("method.kind"), row["state"] == "rejected") for row in (c.row() for c in race.candidates)
    }
    assert states <= {(None, False), ("lora", True), ("bottleneck", False)}


def test_recorded_overrides_stand() -> None:
    spec = ask(trials=4)
    recorded = {2: {"learning_rate": 0.005, "method.rank": 4}}
    race = open_race(spec, recorded.get)
    assert race.candidates[2].overrides == recorded[2]


def test_an_asynchronous_race_decides_at_once_and_keeps_its_places_full() -> None:
    race = open_race(ask(decisions="async", generation=3, trials=6), lambda number: None)
    assert [candidate.number for candidate in race.ready()] == [0, 1, 2]
    for number in (1, 0):
        race.start(number)
        race.heard(number, {"score": 0.5}, keep=False)
    assert race.candidates[1].phase == "stopped" and race.candidates[0].phase == "ready"
    assert sorted(candidate.number for candidate in race.ready()) == [0, 2, 3]


def test_what_is_refused_in_training_is_not_replaced_within_its_generation_whoever_trains_beside_it() -> None:
    specs = [
        ride(ask(trials=12), seed, facts=lambda c: {"refused": "no"} if c.number == 4 else {}) for seed in (None, 3, 8)
    ]
    assert len({json.dumps([candidate.row() for candidate in race.candidates]) for race in specs}) == 1


@pytest.mark.parametrize("decisions", ["rung", "async"])
def test_a_bracket_cuts_nobody_before_its_rung_and_the_last_one_never(decisions: str) -> None:
    race = ride(ask(scheduler="hyperband", decisions=decisions, trials=24, algorithm="random"))
    rows = [candidate.row() for candidate in race.candidates]
    assert {row["bracket"] for row in rows} == {0, 1, 2, 3} and rows[0]["bracket"] == 3
    assert all(len(row["scores"]) > row["bracket"] for row in rows if row["state"] == "stopped")
    assert all(row["state"] == "finished" for row in rows if row["bracket"] == 3)
    assert {row["bracket"] for row in rows if row["state"] == "stopped"} == {0, 1, 2}


def test_a_bracket_decides_by_its_own_scores() -> None:
    race = ride(ask(scheduler="hyperband", trials=40, generation=40, algorithm="random"))
    mine = [candidate for candidate in race.candidates if candidate.bracket == 1]
    best = sorted(mine, key=lambda candidate: -candidate.scores[0.25])[: len(mine) // 2]
    assert {candidate.number for candidate in mine if len(candidate.scores) > 2} == {one.number for one in best}
