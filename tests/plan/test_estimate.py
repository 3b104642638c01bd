"""What a plan says a step would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petl_ray.bank.memory import Machine, base_name, memory_estimate
from petl_ray.errors import AdapterError, CapacityError, PlanError
from petl_ray.evaluation import EvalSpec
from petl_ray.methods import LoraSpec
from petl_ray.models import load_base
from petl_ray.plan import estimate
from petl_ray.training import TrainSpec
from petl_ray.training.session import open_session
from petl_ray.tuning import Limits, SearchSpec
from petl_ray.verb import Resources
from tests.training.questions import locked, recipe

HERE = Machine("cpu", 10**10)
BY_MEMORY = Resources(packs=2, slots=8, slots_by_memory=True)


def search(spec: TrainSpec, **fields: Any) -> SearchSpec:
    return SearchSpec.model_validate({"recipe": spec, "space": {"method.rank": [2, 8]}, **fields})


def test_a_step_that_trains_nothing_costs_nothing() -> None:
    assert estimate(EvalSpec(), Resources(), "classification", HERE) == {
        "work": "",
        "memory_bytes": None,
        "packing": None,
    }


def test_a_search_is_told_with_its_packs_in_the_share_of_the_machine_that_each_has(tiny_bert: Path) -> None:
    told = estimate(search(recipe(locked(tiny_bert))), BY_MEMORY, "classification", HERE, beside=2, under_way=16)
    packing = told["packing"]
    assert (packing["engine"], packing["slots"], packing["packs"]) == ("packed", 4, 2)
    assert packing["machine_bytes"] == HERE.bytes // 2 and packing["calibration"] == "not calibrated"
    assert told["memory_bytes"] == 2 * (packing["base_bytes"] + packing["pass_bytes"] + 4 * packing["slot_bytes"])
    assert packing["why"].startswith("packed: 4 slots of ")


@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
def test_the_sketch_of_a_plan_and_the_session_that_trains_tell_the_same(
    kind: Any, tiny_bert: Path, tiny_llama: Path
) -> None:
    causal = kind == "causal_lm"
    base = locked(tiny_llama if causal else tiny_bert)
    spec = recipe(base, task_type=kind, metric="loss")
    packing = estimate(spec, Resources(), kind, HERE)["packing"]
    session = open_session(spec, 1, 1)
    there = session.footprint(spec, 0 if causal else 16)
    session.close()
    assert (packing["slot_bytes"], packing["pass_bytes"]) == (there["slot_bytes"], there["pass_bytes"]) > (0, 0)
    assert there["row_bytes"] < there["pass_bytes"] and there["state_bytes"] == there["slot_bytes"]
    assert packing["base_bytes"] == pytest.approx(there["base_bytes"], rel=0.05)


def test_without_a_machine_there_is_no_packing(tiny_bert: Path) -> None:
    told = estimate(search(recipe(locked(tiny_bert))), Resources(slots=4), "classification")
    assert told["packing"] is None and told["memory_bytes"] > 0


def test_a_search_alone_has_no_more_slots_than_a_generation_fills(tiny_bert: Path) -> None:
    for machine in (HERE, None):
        told = estimate(search(recipe(locked(tiny_bert)), generation=4), BY_MEMORY, "classification", machine)
        wider = estimate(search(recipe(locked(tiny_bert)), generation=16), BY_MEMORY, "classification", machine)
        assert told["memory_bytes"] < wider["memory_bytes"]
        assert machine is None or (told["packing"]["slots"], wider["packing"]["slots"]) == (2, 4)


def test_workers_divide_the_rows_of_a_step(tiny_bert: Path) -> None:
    """And with gradients accumulated they divide these rows first."""
    spec = recipe(locked(tiny_bert), batch_size=64, max_length=128)
    four = Resources(slots=4, workers=4)
    alone, spread = (estimate(spec, given, "classification", HERE)["packing"] for given in (Resources(), four))
    assert spread["pass_bytes"] * 4 == alone["pass_bytes"] and spread["slots"] == 1
    more = recipe(locked(tiny_bert), batch_size=64, max_length=128, gradient_accumulation=4)
    assert estimate(more, four, "classification", HERE)["packing"]["pass_bytes"] == alone["pass_bytes"]


def test_a_batch_that_is_too_large_for_the_machine_trains_alone_and_is_not_refused(tiny_bert: Path) -> None:
    spec = recipe(locked(tiny_bert), batch_size=65536)
    packing = estimate(spec, Resources(slots_by_memory=True), "classification", Machine("cpu", 10**8))["packing"]
    assert packing["slots"] == 1 and "it trains alone, in smaller passes" in packing["why"]
    fixed = estimate(spec, Resources(slots=3), "classification", Machine("cpu", 10**8))["packing"]
    assert fixed["slots"] == 3 and fixed["why"].startswith("3 slots as placed, but one slot of")


def test_what_earlier_runs_took_is_told_and_counts(tiny_bert: Path) -> None:
    base = locked(tiny_bert)
    took = {"base": base_name(base), "device": "cpu", "run": "r", "state_bytes": 10}
    took |= {"estimated_bytes": 20, "measured_bytes": 30}
    plain, taught = (
        estimate(recipe(base), Resources(), "classification", HERE, measured)["packing"] for measured in ([], [took])
    )
    assert taught["slot_bytes"] == plain["slot_bytes"] > 0 and taught["pass_bytes"] == 2 * plain["pass_bytes"] > 0
    assert (plain["calibration"], taught["calibration"]) == ("not calibrated", "calibrated from 1 run (x 2)")


def test_what_no_machine_of_that_size_could_hold_is_refused_with_the_figures(tiny_bert: Path) -> None:
    spec = recipe(locked(tiny_bert))
    base_bytes = load_base(spec.base, "classification", "cpu").size_bytes
    for asked in (spec, search(spec)):
        with pytest.raises(CapacityError, match="does not fit into"):
            estimate(asked, Resources(), "classification", Machine("cpu", base_bytes))


LAYERS: dict[str, Any] = {"kind": "lora", "rank": 2, "layers": [1]}


def test_a_method_that_the_base_has_no_place_for_is_refused_with_or_without_a_machine(tiny_bert: Path) -> None:
    beyond = recipe(locked(tiny_bert), method={**LAYERS, "layers": [9]})
    for asked in (beyond, search(beyond)):
        for machine in (HERE, None):
            with pytest.raises(AdapterError, match=r"^method\.layers: got 9; this model has 2 layers"):
                estimate(asked, Resources(), "classification", machine)


def test_a_choice_of_a_search_that_the_base_has_no_place_for_is_refused_by_its_path(tiny_bert: Path) -> None:
    spec = search(recipe(locked(tiny_bert)), space={"method.layers": [[0], [0, 9]], "method.rank": [2, 8]})
    with pytest.raises(AdapterError, match=r"^search\.space: method\.layers: got 9; this model has 2 layers"):
        estimate(spec, Resources(), "classification", HERE)


def test_a_choice_that_goes_with_another_choice_is_not_refused(tiny_bert: Path) -> None:
    base = recipe(locked(tiny_bert), method={"kind": "lora", "rank": 2, "targets": ["query"], "layers": [0]})
    space = {"method.layers": [None, [0]], "method.targets": [["query"], ["pooler.dense"]]}
    assert estimate(search(base, space=space), Resources(), "classification", HERE)["memory_bytes"] > 0


def test_a_limit_that_the_recipe_itself_does_not_keep_is_refused(tiny_bert: Path) -> None:
    spec = search(recipe(locked(tiny_bert)), space={"method.rank": [2, 8]})
    few, enough = (spec.model_copy(update={"limits": Limits(trained_share=share)}) for share in (1e-6, 0.9))
    with pytest.raises(
        PlanError, match=r"^search\.limits\.trained_share: got 1e-06; the recipe .* trains 0\.\d+ of all"
    ):
        estimate(few, Resources(), "classification", HERE)
    assert estimate(enough, Resources(), "classification", HERE)["memory_bytes"] > 0


def test_trials_over_the_limit_of_memory_take_no_room(tiny_bert: Path) -> None:
    base = recipe(locked(tiny_bert))
    wide = search(base, space={"method.rank": [2, 512]})
    few = memory_estimate(
        load_base(base.base, "classification", "cpu"), LoraSpec(rank=64), 16, base.batch_size * base.max_length
    )
    bound = wide.model_copy(update={"limits": Limits(memory_bytes=few)})
    narrow = search(base, space={"learning_rate": [1e-3, 2e-3]})
    slots = [
        estimate(asked, BY_MEMORY, "classification", HERE)["packing"]["slot_bytes"] for asked in (bound, narrow, wide)
    ]
    assert slots[0] == slots[1] < slots[2]


def test_rows_longer_than_the_base_has_positions_are_refused(tiny_bert: Path, tiny_llama: Path) -> None:
    """It would fail at the first row that is as long: tonight, or when it is served. What is computed has no bound."""
    base = locked(tiny_bert)
    told = r"max_length: got 129; this base has 128 positions\. Choose at most 128"
    with pytest.raises(PlanError, match=rf"^{told}"):
        estimate(recipe(base, max_length=129), Resources(), "classification")
    with pytest.raises(PlanError, match=rf"^search\.space: {told}"):
        estimate(search(recipe(base), space={"max_length": [64, 129]}), Resources(), "classification")
    estimate(recipe(base, max_length=128), Resources(), "classification")
    estimate(recipe(locked(tiny_llama), task_type="causal_lm", metric="loss", max_length=512), Resources(), "causal_lm")


def test_choices_that_do_not_go_together_leave_what_does(tiny_bert: Path) -> None:
    """Every trial of the search can be trained but those that combine them: these fail alone."""
    base = recipe(locked(tiny_bert), method={"kind": "lora", "rank": 2, "targets": ["pooler.dense", "query"]})
    space = {"method.layers": [None, [0], [1]], "method.targets": [["query"], ["pooler.dense"]]}
    told = estimate(search(base, space=space), Resources(), "classification", HERE)
    assert told["memory_bytes"] > 0 and "packing" in told
