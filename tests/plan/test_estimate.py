"""What a plan says a step would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petl_ray.bank.memory import Machine, base_name
from petl_ray.errors import CapacityError
from petl_ray.evaluation import EvalSpec
from petl_ray.models import load_base
from petl_ray.plan import estimate
from petl_ray.training import TrainSpec
from petl_ray.training.session import open_session
from petl_ray.tuning import SearchSpec
from petl_ray.verb import Resources
from tests.training.questions import locked, recipe

HERE = Machine("cpu", 10**9)
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
    told = estimate(search(recipe(locked(tiny_bert))), BY_MEMORY, "classification", HERE)
    packing = told["packing"]
    assert (packing["engine"], packing["slots"], packing["packs"]) == ("packed", 8, 2)
    assert packing["machine_bytes"] == HERE.bytes // 2 and packing["calibration"] == "not calibrated"
    assert told["memory_bytes"] == 2 * (packing["base_bytes"] + packing["pass_bytes"] + 8 * packing["slot_bytes"])
    assert packing["why"].startswith("packed: 8 slots of ")


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
    assert packing["base_bytes"] == pytest.approx(there["base_bytes"], rel=0.05)


def test_without_a_machine_there_is_no_packing(tiny_bert: Path) -> None:
    told = estimate(search(recipe(locked(tiny_bert))), Resources(slots=4), "classification")
    assert told["packing"] is None and told["memory_bytes"] > 0


def test_what_earlier_runs_took_is_told_and_counts(tiny_bert: Path) -> None:
    base = locked(tiny_bert)
    took = {"base": base_name(base), "device": "cpu", "run": "r", "estimated_bytes": 10, "measured_bytes": 20}
    plain, taught = (
        estimate(recipe(base), Resources(), "classification", HERE, measured)["packing"] for measured in ([], [took])
    )
    assert all(taught[name] == 2 * plain[name] > 0 for name in ("slot_bytes", "pass_bytes"))
    assert (plain["calibration"], taught["calibration"]) == ("not calibrated", "calibrated from 1 run (x 2)")


def test_what_no_machine_of_that_size_could_hold_is_refused_with_the_figures(tiny_bert: Path) -> None:
    spec = recipe(locked(tiny_bert))
    base_bytes = load_base(spec.base, "classification", "cpu").size_bytes
    for asked in (spec, search(spec)):
        with pytest.raises(CapacityError, match="does not fit into"):
            estimate(asked, Resources(), "classification", Machine("cpu", base_bytes))
