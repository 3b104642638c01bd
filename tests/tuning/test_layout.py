"""How trials are laid out in packs, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from petl_ray.errors import CapacityError
from petl_ray.tuning.layout import Demand, lay_out, widest
from petl_ray.verb import Resources
from tests.tuning.fake_training.asking import ask
from tests.tuning.fake_training.spec import Bottleneck, Lora, MiniSpec

MB, GB = 10**6, 10**9
MINI = Demand("s", "b", "cpu", 91 * MB, 21 * MB, 0, 21 * MB, 0, 12 * GB, True)
BY_MEMORY = Resources(slots=8, slots_by_memory=True)


@pytest.mark.parametrize(
    ("engine", "resources", "demand", "slots", "told"),
    [
        ("auto", Resources(slots=4), MINI, 4, "packed: 4 slots of 21 MB beside a base of 91 MB fit into 12 GB"),
        ("auto", BY_MEMORY, MINI, 8, "packed: 8 slots of 21 MB beside a base of 91 MB fit into 12 GB"),
        (
            "auto",
            BY_MEMORY,
            replace(MINI, slot_bytes=9 * GB, widest_bytes=9 * GB, machine_bytes=16 * GB),
            1,
            "solo: one slot of 9.0 GB leaves no room for a second in 16 GB",
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
            replace(MINI, machine_bytes=160 * MB),
            4,
            "packed: 4 slots as placed, but 2 slots of 21 MB",
        ),
        ("packed", BY_MEMORY, replace(MINI, machine_bytes=160 * MB), 2, "packed: 2 slots of 21 MB"),
        ("auto", Resources(slots=4), replace(MINI, machine_bytes=160 * MB), 2, "packed: 2 slots of 21 MB"),
        ("solo", Resources(slots=4), MINI, 1, "solo: as asked; one slot of 21 MB beside a base of 91 MB fits"),
        (
            "auto",
            BY_MEMORY,
            replace(MINI, widest_bytes=20 * GB),
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
    small = replace(MINI, machine_bytes=400 * MB)
    assert [lay_out("packed", BY_MEMORY, beside, [small]).slots for beside in (1, 2)] == [8, 4]
    gpu = replace(small, device="cuda", machine_bytes=2 * GB)
    wide = Resources(gpus=0.5, packs=2, slots=64, slots_by_memory=True)
    assert lay_out("packed", wide, 2, [gpu]).machine_bytes == GB
    assert [lay_out("packed", replace(wide, gpus=gpus), 2, [gpu]).slots for gpus in (0.5, 1.0)] == [38, 64]


def test_no_room_for_the_recipe_is_refused_whatever_the_engine() -> None:
    for engine in ("auto", "packed", "solo"):
        with pytest.raises(CapacityError, match="beside a base of 91 MB does not fit into 100 MB"):
            lay_out(cast("Any", engine), Resources(), 1, [replace(MINI, machine_bytes=100 * MB)])


def test_searches_over_two_bases_need_room_for_both() -> None:
    other = replace(MINI, session="t", base="c", base_bytes=200 * MB, slot_bytes=10 * MB, widest_bytes=10 * MB)
    layout = lay_out("packed", BY_MEMORY, 1, [MINI, other, replace(other, slot_bytes=5 * MB)])
    assert (layout.base_bytes, layout.slot_bytes) == (291 * MB, 31 * MB)


def test_passes_that_follow_one_another_count_once() -> None:
    passes = replace(MINI, pass_bytes=100 * MB, widest_pass_bytes=200 * MB, machine_bytes=420 * MB)
    layout = lay_out("auto", BY_MEMORY, 1, [passes])
    assert (layout.slots, layout.pass_bytes) == (4, 200 * MB)
    assert layout.why == "4 slots of 21 MB beside a base of 91 MB and passes of 200 MB fit into 420 MB"


def test_what_earlier_runs_took_moves_the_estimate() -> None:
    took = {"base": "b", "device": "cpu", "run": "r", "estimated_bytes": 100, "measured_bytes": 300}
    layout = lay_out("auto", BY_MEMORY, 1, [replace(MINI, machine_bytes=400 * MB)], [took])
    assert (layout.slots, layout.slot_bytes, layout.calibration) == (4, 63 * MB, "calibrated from 1 run (x 3)")


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
