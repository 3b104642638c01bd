"""What a base and its slots take: planned with, measured, calibrated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from petl_ray.bank.memory import (
    PASS_TOKENS,
    RATIOS,
    USABLE,
    Calibration,
    Gauge,
    Machine,
    Takes,
    activation_estimate,
    base_estimate,
    base_name,
    calibrate,
    machine_here,
    plan_slots,
    takes,
    told_bytes,
)
from petl_ray.errors import CapacityError
from petl_ray.models import BaseSpec, load_base, resolve
from petl_ray.models.loading import LoadedBase, load_skeleton

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("base", "slot", "machine", "most", "slots", "why"),
    [
        (91 * MB, 21 * MB, 12 * GB, 4, 4, "4 slots of 21 MB beside a base of 91 MB fit into 12 GB"),
        (5 * GB, 9 * GB, 16 * GB, 8, 1, "one slot of 9.0 GB leaves no room for a second in 16 GB"),
        (1 * GB, 2 * GB, 10 * GB, 8, 4, "4 slots of 2.0 GB beside a base of 1.0 GB fit into 10 GB"),
        (1 * GB, 2 * GB, 10 * GB, 1, 1, "one slot of 2.0 GB beside a base of 1.0 GB fits into 10 GB"),
    ],
)
def test_as_many_slots_as_fit_beside_the_base(
    base: int, slot: int, machine: int, most: int, slots: int, why: str
) -> None:
    plan = plan_slots(base, slot, machine, most)
    assert (plan.slots, plan.why) == (slots, why)


def test_no_room_for_one_slot_is_refused_with_the_figures() -> None:
    with pytest.raises(CapacityError, match=r"one slot of 9\.0 GB beside a base of 8\.0 GB does not fit into 16 GB"):
        plan_slots(8 * GB, 9 * GB, 16 * GB, 4)


@given(some.integers(0, 10**12), some.integers(1, 10**11), some.integers(1, 10**12), some.integers(1, 64))
def test_what_is_planned_fits_and_one_more_would_not(base: int, slot: int, machine: int, most: int) -> None:
    try:
        slots = plan_slots(base, slot, machine, most).slots
    except CapacityError:
        assert base + slot > machine * USABLE - 1
        return
    assert 1 <= slots <= most and base + slots * slot <= machine * USABLE
    assert slots == most or base + (slots + 1) * slot > machine * USABLE


@pytest.mark.parametrize(
    ("device", "gpus", "beside", "share"),
    [
        ("cpu", 0.0, 4, 1 / 4),
        ("cpu", 0.0, 0, 1.0),
        ("cuda", 0.5, 8, 1 / 2),
        ("cuda", 0.4, 8, 1 / 2),  # two of them go into one GPU
        ("cuda", 0.1, 3, 1 / 10),
        ("cuda", 1.0, 8, 1.0),  # each has one of its own
        ("cuda", 2.0, 2, 1.0),
        ("cuda", 0.0, 2, 1 / 2),  # nobody reserved it, and all see it
    ],
)
def test_a_process_takes_its_share_of_the_machine_or_the_gpu(
    device: str, gpus: float, beside: int, share: float
) -> None:
    assert Machine(device, 1000).share(gpus, beside) == pytest.approx(1000 * share)


def test_bytes_are_told_in_two_digits() -> None:
    told = [told_bytes(count) for count in (0, 512, 9_400, 21_400_000, 999_600_000, 1_540_000_000, 12 * GB)]
    assert told == ["0 B", "512 B", "9.4 KB", "21 MB", "1.0 GB", "1.5 GB", "12 GB"]


def measure(base: str = "b", device: str = "cpu", run: str = "r", took: float = 2.0) -> dict[str, object]:
    return {"base": base, "device": device, "run": run, "estimated_bytes": 100, "measured_bytes": 100 * took}


def test_estimates_are_calibrated_by_the_median_of_what_runs_over_the_same_base_took() -> None:
    measured = [
        *(measure(run=run, took=took) for run, took in (("r1", 1.0), ("r2", 1.5), ("r2", 9.0))),
        measure(base="another"),
        measure(device="cuda"),
        {"run": "r9"},
        {**measure(run="r8"), "estimated_bytes": 0},
    ]
    found = calibrate(measured, "b", "cpu")
    assert found.ratio == 1.5 and found.told == "calibrated from 2 runs (x 1.5)"
    assert calibrate(measured, "unknown", "cpu") == Calibration() and Calibration().told == "not calibrated"


@pytest.mark.parametrize(("took", "ratio"), [(0.0, RATIOS[0]), (100.0, RATIOS[1])])
def test_a_calibration_stays_within_sane_bounds(took: float, ratio: float) -> None:
    assert calibrate([measure(took=took)], "b", "cpu").ratio == ratio


def test_a_gauge_tells_the_peak_and_not_what_was_there_before() -> None:
    before = torch.ones(4 << 20)  # 16 MiB that are not its own
    gauge = Gauge("cpu")
    torch.ones(25 << 20).sum()  # 100 MiB, gone at once
    assert 90 << 20 < gauge.taken_bytes < 140 << 20
    assert Gauge("cpu").taken_bytes < 50 << 20
    assert before[0] == 1


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_sketch_of_a_base_tells_what_it_takes_when_it_is_loaded(tiny_bert: Path, quantization: str) -> None:
    spec = BaseSpec.model_validate({"source": str(tiny_bert), "precision": "fp32", "quantization": quantization})
    locked = resolve(spec)
    resident = load_base(locked, "classification", "cpu")
    model = load_skeleton(locked, "classification")
    sketch = LoadedBase(**{**vars(resident), "model": model, "device": torch.device("meta")})
    assert base_estimate(resident) == resident.size_bytes
    assert base_estimate(sketch) == pytest.approx(resident.size_bytes, rel=0.05)
    assert base_name(locked) == f"{locked.pinned.digest}/fp32/{quantization}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_slots_share_their_passes_on_a_cpu_and_bring_their_own_on_a_gpu(tiny_bert: Path, precision: str) -> None:
    loaded = load_base(
        resolve(BaseSpec.model_validate({"source": str(tiny_bert), "precision": precision})), "classification", "cpu"
    )
    bound = PASS_TOKENS["fp32" if precision == "fp32" else "other"]
    assert takes(loaded, "cuda", 10, 64) == Takes(160 + activation_estimate(loaded, 64), 0)
    assert takes(loaded, "cpu", 10, 64) == Takes(160, activation_estimate(loaded, bound))
    assert takes(loaded, "cpu", 10, 4096) == Takes(160, activation_estimate(loaded, 4096))
    assert takes(loaded, "cpu", 10, 64, shared=False) == Takes(160, activation_estimate(loaded, 64))


def test_a_host_tells_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = machine_here()
    assert here.device == "cpu" and 0 < here.bytes < 1 << 50
