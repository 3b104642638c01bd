"""What a base and its slots take: planned with, measured, calibrated."""

from __future__ import annotations

from dataclasses import replace
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
    Steps,
    Takes,
    activation_estimate,
    base_estimate,
    base_name,
    calibrate,
    machine_here,
    makes_logits_late,
    plan_slots,
    takes,
    told_bytes,
)
from petl_ray.errors import CapacityError
from petl_ray.methods import LoraSpec
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


def test_what_fits_a_row_at_a_time_trains_alone_and_only_what_does_not_is_refused() -> None:
    plan = plan_slots(8 * GB, 9 * GB, 16 * GB, 4, least_bytes=6 * GB)
    assert plan.slots == 1 and plan.why.endswith("; it trains alone, in smaller passes where memory runs out")
    with pytest.raises(CapacityError, match=r"16 GB, nor do 7\.0 GB for one row at a time"):
        plan_slots(8 * GB, 9 * GB, 16 * GB, 4, least_bytes=7 * GB)


@pytest.mark.parametrize(("most", "slots"), [(0, 8), (1, 7), (4, 4), (9, 3)])
def test_what_else_slots_take_makes_them_fewer(most: int, slots: int) -> None:
    plan = plan_slots(1 * GB, 1 * GB, 10 * GB, 8, beside_bytes=lambda count: min(count + 1, most) * GB)
    assert plan.slots == slots


def test_what_else_slots_take_refuses_nobody() -> None:
    assert plan_slots(1 * GB, 7 * GB, 10 * GB, 8, beside_bytes=lambda count: 9.0 * GB).slots == 1


def test_a_share_of_a_host_is_of_all_its_memory_and_no_more_than_is_free() -> None:
    assert [Machine("cpu", 1000, free).share(0, 4) for free in (None, 900, 100)] == [250, 250, 100]


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
    """Slots whose state is 1,000 bytes, and activations of 100 that came to `took` times as much."""
    known = {"base": base, "device": device, "run": run, "state_bytes": 1000}
    return {**known, "estimated_bytes": 1100, "measured_bytes": 1000 + 100 * took}


def test_estimates_are_calibrated_by_the_median_of_what_runs_over_the_same_base_took() -> None:
    measured = [
        *(measure(run=run, took=took) for run, took in (("r1", 1.0), ("r2", 1.5), ("r2", 9.0))),
        measure(base="another"),
        measure(device="cuda"),
        {"run": "r9"},
        {**measure(run="r8"), "estimated_bytes": 1000},  # no pass was made
        {
            "base": "b",
            "device": "cpu",
            "run": "r7",
            "estimated_bytes": 9,
            "measured_bytes": 90,
        },  # of what, nobody knows
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
    row, state = activation_estimate(loaded, 8), 10 * (20 if precision == "fp32" else 22)
    stacked = state + 10 * 12  # a GPU multiplies slots together
    few, many = Steps(64, 8), Steps(4096, 8)
    assert takes(loaded, "cuda", 10, few) == Takes(stacked + activation_estimate(loaded, 64), 0, stacked, row)
    assert takes(loaded, "cpu", 10, few) == Takes(state, activation_estimate(loaded, bound), state, row)
    assert takes(loaded, "cpu", 10, many) == Takes(state, activation_estimate(loaded, 4096), state, row)
    assert takes(loaded, "cpu", 10, few, shared=False) == Takes(state, activation_estimate(loaded, 64), state, row)
    assert takes(loaded, "cuda", 10, few).least_bytes == stacked + row
    assert takes(loaded, "cuda", 10, few).calibrated(Calibration(2.0)).slot_bytes == stacked + 2 * (
        activation_estimate(loaded, 64)
    )


def test_states_that_are_kept_are_there_once_and_no_activations(tiny_bert: Path) -> None:
    loaded = load_base(
        resolve(BaseSpec.model_validate({"source": str(tiny_bert), "precision": "fp32"})), "classification", "cpu"
    )
    plain, kept = (takes(loaded, "cpu", 10, Steps(1024, 8, kept_bytes=count)) for count in (0, 1000))
    assert kept == replace(plain, pass_bytes=plain.pass_bytes + 1000, kept_bytes=1000)
    assert kept.calibrated(Calibration(3.0)).pass_bytes == 3 * plain.pass_bytes + 1000
    assert kept.least_bytes == plain.least_bytes, "what is kept makes room where nothing else has any"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_long_rows_keep_their_scores_where_attention_is_explicit(tiny_bert: Path, precision: str) -> None:
    spec = resolve(BaseSpec.model_validate({"source": str(tiny_bert), "precision": precision}))
    loaded = load_base(spec, "classification", "cpu")
    short, long = (activation_estimate(loaded, 1024, row_tokens) for row_tokens in (128, 512))
    config, explicit = loaded.model.config, precision == "bf16"
    scores = 1024 * config.num_hidden_layers * config.num_attention_heads * (512 - 128)
    assert long - short == (scores * (2 + 4) if explicit else 0), "in bf16, and the fp32 copy for the softmax"
    sketch = load_skeleton(spec, "classification")
    assert (sketch.config._attn_implementation == "eager") == explicit


def test_layers_that_are_computed_again_keep_one_vector_each(tiny_bert: Path) -> None:
    loaded = load_base(
        resolve(BaseSpec.model_validate({"source": str(tiny_bert), "precision": "fp32"})), "classification", "cpu"
    )
    config = loaded.model.config
    layer = activation_estimate(loaded, 64) // config.num_hidden_layers
    vectors = 64 * 4 * config.num_hidden_layers * config.hidden_size
    assert activation_estimate(loaded, 64, checkpointed=True) == layer + vectors < activation_estimate(loaded, 64)
    assert activation_estimate(loaded, 64, frozen_depth=1) == activation_estimate(loaded, 64) - layer
    assert not makes_logits_late(loaded, LoraSpec())


def test_late_logits_take_a_chunk_and_not_the_vocabulary_of_every_token(tiny_llama: Path) -> None:
    """Where the head is frozen: not where it is adapted, nor where the model bends its logits."""
    loaded = load_base(
        resolve(BaseSpec.model_validate({"source": str(tiny_llama), "precision": "fp32"})), "causal_lm", "cpu"
    )
    whole, late = activation_estimate(loaded, 512), activation_estimate(loaded, 512, late=True)
    assert whole - late == 512 * loaded.model.config.vocab_size * 8
    few = Steps(512, 64, late_bytes=1 << 10)
    on_gpu, on_cpu = (takes(loaded, device, 10, few, shared=False) for device in ("cuda", "cpu"))
    assert on_gpu == Takes(320 + late, 3 << 10, 320, activation_estimate(loaded, 64, late=True) + (3 << 10))
    assert on_cpu.pass_bytes == late + (3 << 10)
    assert makes_logits_late(loaded, LoraSpec())
    assert not makes_logits_late(loaded, LoraSpec(targets=("q_proj", "lm_head")))
    loaded.model.config.final_logit_softcapping = 30.0
    assert not makes_logits_late(loaded, LoraSpec())


def test_a_host_tells_what_it_has_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = machine_here()
    assert here.device == "cpu" and here.free_bytes is not None and 0 < here.free_bytes < here.bytes < 1 << 50
