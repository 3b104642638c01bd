"""How trials are laid out in packs, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from petl_ray.bank.memory import Machine, Takes
from petl_ray.errors import CapacityError
from petl_ray.tuning.layout import Demand, lay_out, trials_under_way, widest
from petl_ray.verb import Resources
from tests.tuning.fake_training.asking import ask
from tests.tuning.fake_training.spec import Bottleneck, Lora, MiniSpec

MB, GB = 10**6, 10**9
SLOT = Takes(21 * MB, 0, 21 * MB, 1 * MB)
MINI = Demand("s", "b", "cpu", 91 * MB, SLOT, SLOT, Machine("cpu", 12 * GB), True)
TIGHT = replace(MINI, machine=Machine("cpu", 550 * MB))  # two slots, and three trials' processes of 120 MB
HUGE = Takes(9 * GB, 0, 21 * MB, 1 * GB)
BY_MEMORY = Resources(slots=8, slots_by_memory=True)


@pytest.mark.parametrize(
    ("engine", "resources", "demand", "slots", "told"),
    [
        ("auto", Resources(slots=4), MINI, 4, "packed: 4 slots of 21 MB beside a base of 91 MB fit into 12 GB"),
        ("auto", BY_MEMORY, MINI, 4, "packed: 4 slots of 21 MB beside a base of 91 MB fit into 12 GB"),
        (
            "auto",
            BY_MEMORY,
            replace(MINI, recipe=HUGE, widest=HUGE, machine=Machine("cpu", 16 * GB)),
            1,
            "solo: one slot of 9.0 GB leaves no room for a second in 16 GB",
        ),
        (
            "auto",
            Resources(slots=4),
            replace(MINI, recipe=HUGE, widest=HUGE, machine=Machine("cpu", 4 * GB)),
            1,
            "solo: one slot of 9.0 GB beside a base of 91 MB does not fit into 4.0 GB; it trains alone, in smaller passes",
        ),
        (
            "auto",
            Resources(slots=4),
            replace(MINI, shared=False),
            1,
            "solo: slots over this base share no passes here, so that a second one gains nothing",
        ),
        ("packed", Resources(slots=4), replace(MINI, shared=False), 4, "packed: 4 slots of 21 MB beside"),
        (
            "packed",
            Resources(slots=4),
            TIGHT,
            4,
            "packed: 4 slots as placed, but 2 slots of 21 MB",
        ),
        ("packed", BY_MEMORY, TIGHT, 2, "packed: 2 slots of 21 MB"),
        ("auto", Resources(slots=4), TIGHT, 2, "packed: 2 slots of 21 MB"),
        ("solo", Resources(slots=4), MINI, 1, "solo: as asked; one slot of 21 MB beside a base of 91 MB fits"),
        (
            "auto",
            BY_MEMORY,
            replace(MINI, widest=replace(SLOT, slot_bytes=20 * GB)),
            1,
            "solo: one slot of 21 MB beside a base of 91 MB fits into 12 GB; the largest trial takes 20 GB",
        ),
    ],
)
def test_the_engine_is_chosen_by_memory_and_base_and_says_why(
    engine: Any, resources: Resources, demand: Demand, slots: int, told: str
) -> None:
    layout = lay_out(engine, resources, 1, [demand])
    assert layout.slots == slots and str(layout).startswith(told)
    assert layout.engine == told.split(":")[0] and layout.calibration == "not calibrated"


def test_packs_divide_the_memory_of_a_machine_and_gpus_by_their_shares() -> None:
    small = replace(MINI, machine=Machine("cpu", 1200 * MB))
    assert [lay_out("packed", BY_MEMORY, beside, [small]).slots for beside in (1, 2)] == [4, 2]
    full = replace(MINI, machine=Machine("cpu", 2400 * MB, 550 * MB))  # others have taken theirs: not divided again
    assert [lay_out("packed", BY_MEMORY, beside, [full]).slots for beside in (1, 2)] == [2, 2]
    gpu = replace(small, device="cuda", machine=Machine("cuda", 2 * GB))
    wide = Resources(gpus=0.5, packs=2, slots=64, slots_by_memory=True)
    assert lay_out("packed", wide, 2, [gpu]).machine_bytes == GB
    assert [lay_out("packed", replace(wide, gpus=gpus), 2, [gpu]).slots for gpus in (0.5, 1.0)] == [38, 64]


def test_no_room_for_the_recipe_is_refused_whatever_the_engine() -> None:
    for engine in ("auto", "packed", "solo"):
        with pytest.raises(CapacityError, match="beside a base of 91 MB does not fit into 100 MB"):
            lay_out(cast("Any", engine), Resources(), 1, [replace(MINI, machine=Machine("cpu", 100 * MB))])


def test_searches_over_two_bases_need_room_for_both() -> None:
    ten = Takes(10 * MB, 0, 10 * MB, 0)
    other = replace(MINI, session="t", base="c", base_bytes=200 * MB, recipe=ten, widest=ten)
    layout = lay_out("packed", BY_MEMORY, 1, [MINI, other, replace(other, recipe=Takes(5 * MB, 0, 5 * MB, 0))])
    assert (layout.base_bytes, layout.slot_bytes) == (291 * MB, 31 * MB)
    with pytest.raises(CapacityError):  # each is trained in turn rather than both in halves
        lay_out("packed", BY_MEMORY, 1, [replace(one, machine=Machine("cpu", 300 * MB)) for one in (MINI, other)])


def test_passes_that_follow_one_another_count_once() -> None:
    least, most = (replace(SLOT, pass_bytes=count * MB) for count in (100, 200))
    passes = replace(MINI, recipe=least, widest=most, machine=Machine("cpu", 1084 * MB))
    layout = lay_out("auto", BY_MEMORY, 1, [passes])
    assert (layout.slots, layout.pass_bytes) == (4, 200 * MB)
    assert layout.why == "4 slots of 21 MB beside a base of 91 MB and passes of 200 MB fit into 1.1 GB"


TOOK = {"base": "b", "device": "cpu", "run": "r", "state_bytes": 50, "estimated_bytes": 100, "measured_bytes": 200}


def test_what_earlier_runs_took_moves_the_estimate_of_activations_and_refuses_nothing() -> None:
    gpu = Takes(71 * MB, 20 * MB, 21 * MB, 1 * MB)
    taught = replace(MINI, recipe=gpu, widest=gpu, machine=Machine("cpu", 1500 * MB))
    layout = lay_out("auto", BY_MEMORY, 1, [taught], [TOOK])
    assert (layout.slot_bytes, layout.pass_bytes) == (171 * MB, 60 * MB)
    assert (layout.slots, layout.calibration) == (3, "calibrated from 1 run (x 3)")
    small = replace(taught, machine=Machine("cpu", 250 * MB))
    assert lay_out("packed", BY_MEMORY, 1, [small], [TOOK]).slots == 1


def test_packs_have_no_more_slots_than_trials_are_under_way_and_say_so() -> None:
    few = Resources(packs=2, slots=8, slots_by_memory=True)
    layout = lay_out("auto", few, 2, [MINI], under_way=5)
    assert (layout.slots, layout.lanes) == (3, 3)
    assert layout.why.endswith("fit into 6.0 GB; no more than 5 trials are under way at once")
    assert [lay_out("packed", Resources(slots=4), 1, [MINI], (), trials).slots for trials in (2, 4, 9)] == [2, 4, 4]
    assert [lay_out("packed", Resources(slots=4), 1, [MINI], (), trials).lanes for trials in (2, 4, 9)] == [2, 4, 5]
    assert lay_out("packed", Resources(slots=4), 1, [], (), 2).slots == 2
    assert trials_under_way([ask(trials=3), ask(trials=9, generation=4)]) == 7
    assert (
        trials_under_way([ask(trials=9, scheduler="pbt", space={"learning_rate": {"loguniform": [1e-4, 1e-2]}})]) == 9
    )


def test_the_widest_trials_have_every_number_at_its_highest_and_every_other_choice() -> None:
    spec = ask(space={"method.rank": [2, 16, 4], "seed": {"integer": [0, 7]}})
    found = [cast("MiniSpec", one) for one in widest(spec)]
    assert found[0] == MiniSpec()
    assert found[1] == MiniSpec(method=Lora(rank=16), seed=7)
    kinds = ask(space={"method.kind": ["lora", "bottleneck"], "method.rank": [2, 64]})
    methods = [cast("MiniSpec", one).method for one in widest(kinds)]
    assert Lora(rank=64) in methods and Bottleneck() in methods


def test_the_engine_bears_no_identity() -> None:
    names = {str(ask(engine=engine).identity()) for engine in ("auto", "packed", "solo")}
    assert len(names) == 1
