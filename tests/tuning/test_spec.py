import re

import pytest
from pydantic import ValidationError

from petl_ray.fingerprint import fingerprint
from petl_ray.tuning import SearchSpec, planned_work, search
from petl_ray.tuning.domains import listed
from tests.tuning.fake_training import train
from tests.tuning.fake_training.asking import ask
from tests.tuning.fake_training.spec import MiniSpec

FORMS = [
    ([1, 2, 4], {"kind": "choice", "values": (1, 2, 4)}),
    ({"choice": ["a", ["q", "v"]]}, {"kind": "choice", "values": ("a", ["q", "v"])}),
    ({"loguniform": [1e-4, 1e-2]}, {"kind": "loguniform", "low": 1e-4, "high": 1e-2}),
    ({"uniform": [0, 1]}, {"kind": "uniform", "low": 0.0, "high": 1.0}),
    ({"quniform": [0, 1, 0.25]}, {"kind": "quniform", "low": 0.0, "high": 1.0, "step": 0.25}),
    ({"integer": [1, 3]}, {"kind": "integer", "low": 1, "high": 3}),
    ({"logint": [1, 64]}, {"kind": "logint", "low": 1, "high": 64}),
]


@pytest.mark.parametrize(("short", "long"), FORMS)
def test_a_domain_has_a_short_form_and_survives_json(short: object, long: dict[str, object]) -> None:
    spec = ask(space={"seed": short})
    assert spec.space["seed"].model_dump() == long
    assert SearchSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [1, 1],
        {"uniform": [1]},
        {"uniform": [2, 1]},
        {"loguniform": [0, 1]},
        {"normal": [0, 1]},
        {"logint": [0, 4]},
        3,
    ],
)
def test_a_domain_without_sense_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        ask(space={"seed": wrong})


def test_true_and_one_are_two_values() -> None:
    assert listed(ask(space={"seed": [True, 1]}).space["seed"]) == [True, 1]


@pytest.mark.parametrize("rungs", [(), (0.5,), (0.5, 0.25, 1.0), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 1.5)])
def test_rungs_rise_to_the_whole_horizon(rungs: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        ask(rungs=rungs)


def test_the_base_is_not_searched() -> None:
    with pytest.raises(ValidationError, match="one frozen base"):
        ask(space={"base": ["a", "b"]})
    with pytest.raises(ValidationError, match="got gradient_checkpointing; a search has one frozen base"):
        ask(space={"gradient_checkpointing": [True, False]})


def test_a_recipe_may_be_the_spec_or_its_json() -> None:
    by_spec = ask(MiniSpec(seed=3))
    by_json = ask(recipe_spec="tests.tuning.fake_training.spec:MiniSpec", recipe={"seed": 3})
    assert by_spec.template() == by_json.template() == MiniSpec(seed=3)
    assert fingerprint(search.identity, by_spec) == fingerprint(search.identity, by_json)


def test_the_name_of_a_search_holds_the_training_verb_and_not_the_spelling_of_the_recipe() -> None:
    assert fingerprint(search.using(train=train).identity, ask()) != fingerprint(search.identity, ask())
    assert fingerprint(search.identity, ask(MiniSpec(seed=1))) != fingerprint(search.identity, ask())


@pytest.mark.parametrize("wrong", [{"decisions": "async"}, {"trials": 1}, {"rungs": [1.0]}])
def test_a_population_meets_at_rungs(wrong: dict[str, object]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValidationError, match=re.escape(f"{name}: got {value} with scheduler pbt")):
        ask(scheduler="pbt", **wrong)


def test_a_question_that_knows_nothing_of_populations_keeps_its_name() -> None:
    assert "quantile" not in ask().identity() and "quantile" in ask(scheduler="pbt", quantile=0.5).identity()
    assert fingerprint(search.identity, ask()).startswith("7804b3a4fd61b1a1")


def test_planned_work_counts_the_default_whole_and_the_others_by_what_survives() -> None:
    assert planned_work(ask(scheduler="none", trials=5)) == {"trials": 5, "full_trainings": 5.0}
    halves = planned_work(ask(trials=3, rungs=(0.5, 1.0), reduction=2.0))
    assert halves == {"trials": 3, "full_trainings": 1 + 2 * (0.5 + 0.25)}


def test_planned_work_knows_brackets_and_that_a_population_is_trained_whole() -> None:
    assert planned_work(ask(scheduler="pbt", trials=6))["full_trainings"] == 6.0
    halves = {
        "rungs": (0.5, 1.0),
        "reduction": 2.0,
        "trials": 5,
    }  # trials 1 to 4: two are cut at the first rung, two never
    assert planned_work(ask(scheduler="hyperband", **halves))["full_trainings"] == 1 + 2 * 0.75 + 2 * 1.0
