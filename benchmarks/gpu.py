"""`python -m benchmarks.gpu [--quick | --small]`: the bank on a GPU against eager PEFT, with plain torch and without Ray.

Correctness first: NF4 against its own dequantised weights, slots of a pack against the same slots alone, a pack of one
against PEFT from equal weights. Where one of them is beyond its limit, nothing is timed. Then MiniLM's shape in packs,
with the bank alone and through a session as searches have it, and Llamas of 1B and 8B shape with random weights, LoRA
and QLoRA, from 256 to 32k tokens a step: in a pack of trials of 512 tokens, against PEFT with one such trial after
another, and against PEFT with as many tokens of one trial. One table, one JSON row a line. On a CPU it runs with
`--small`.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import rows
from benchmarks.contest import Point, agreement, beside_peft, nf4_error, pack_step, peft_step, timed_step
from benchmarks.equality import LIMITS, STEPS, apart
from benchmarks.machine import describe
from benchmarks.rows import Row
from benchmarks.shapes import Precision, base
from benchmarks.turns import BATCHES, turning

ISOLATION_LIMIT, NF4_LIMITS = 1e-4, {"fp32": 1e-4, "bf16": 3e-2, "fp16": 3e-2}
MODES = ("fp32", "autocast", "half")


@dataclass(frozen=True)
class Course:
    """What is measured: shapes, packs, slots of a session, the tokens of a step, rounds."""

    encoder: str
    batch: tuple[int, int]
    packs: tuple[int, ...]
    slots: int
    llamas: tuple[str, ...]
    trial_tokens: int
    tokens: tuple[int, ...]
    rounds: int
    precision: Precision


WHOLE = Course(
    "MiniLM", (8, 32), (1, 8, 64, 256), 64, ("1B Llama", "8B Llama"), 512, tuple(256 << n for n in range(8)), 5, "bf16"
)
QUICK = Course("MiniLM", (8, 32), (1, 64, 256), 64, ("1B Llama",), 512, (512, 4096, 32768), 3, "bf16")
SMALL = Course("tiny BERT", (2, 8), (1, 4), 4, ("tiny Llama",), 16, (8, 16, 64), 2, "fp32")


def measure(course: Course, device: str) -> Iterator[Row]:
    """All rows of `course` on `device`; those of correctness alone where one of them is not well."""
    right = True
    for row in _correct(course, device):
        right = right and row.ok is True
        yield row
    if right:
        yield from _timed(course, device)


def _timed(course: Course, device: str) -> Iterator[Row]:
    yield from _encoder(course, device)
    for name in course.llamas:
        for nf4 in (False, True):
            yield from _curve(course, device, name, nf4)


def _correct(course: Course, device: str) -> Iterator[Row]:
    """Limits over what was found: 1 or more is well."""
    small = "tiny Llama"
    for precision in dict.fromkeys(("fp32", course.precision)):
        error, limit = nf4_error(base(small, precision, nf4=True, device=device)), NF4_LIMITS[precision]
        yield _limit(f"NF4 forward and gradients against the dequantised weights, {precision}", error, limit)
    for name in ("tiny BERT", small):
        error = agreement(partial(base, name, "fp32", device=device), grouped=True)
        yield _limit(f"a slot in a pack against itself alone, {name}, fp32, 50 steps", error, ISOLATION_LIMIT)
    for name, nf4 in dict.fromkeys((("tiny BERT", False), (course.encoder, False), (small, False), (small, True))):
        for precision in dict.fromkeys(("fp32", course.precision)):
            error = apart(*beside_peft(name, precision, device, nf4))
            what = f"{name}{', NF4' if nf4 else ''}, {precision}, losses of {STEPS} steps"
            yield _limit(f"a pack of one against PEFT from equal weights, {what}", error, LIMITS[precision])


def _encoder(course: Course, device: str) -> Iterator[Row]:
    """Packs of K trials against one eager PEFT trial in its fastest mode."""
    count, length = course.batch
    best = min(
        (timed_step(peft_step(course.encoder, mode, count, length, device), course.rounds, device) for mode in MODES),
        key=lambda point: point.step_s,
    )
    speeds, points = dict[int, float](), dict[int, Point]()
    for slots in course.packs:
        loaded = base(course.encoder, course.precision, device=device)
        point = points[slots] = timed_step(pack_step(loaded, slots, count, length), course.rounds, device)
        speeds[slots] = slots / point.step_s
        figure = f"{course.encoder} {count} x {length}, {course.precision}, a pack of {slots} against eager PEFT"
        yield _faster(figure, "steps/s", speeds[slots], 1 / best.step_s, point)
        _forget()
    most = max(speeds, key=speeds.__getitem__)
    figure = f"{course.encoder} {count} x {length}, {course.precision}, the best pack against eager PEFT"
    note = f"a pack of {most}"
    yield _faster(figure, "steps/s", speeds[most], 1 / best.step_s, points[most], 20.0, 100.0, note=note)
    if device.startswith("cuda") == torch.cuda.is_available():  # a session chooses its device itself
        with turning(course.encoder, course.precision, course.slots, count, length) as turn:
            point = timed_step(turn, course.rounds, device, warm=BATCHES)
        figure = f"{course.encoder} {count} x {length}, {course.precision}, turns of a session of {course.slots} slots"
        yield _faster(f"{figure} against eager PEFT", "steps/s", course.slots / point.step_s, 1 / best.step_s, point)
        _forget()


def _curve(course: Course, device: str, name: str, nf4: bool) -> Iterator[Row]:
    kind = f"{name}, {'QLoRA' if nf4 else 'LoRA'}"
    theirs = {tokens: _theirs(course, device, name, nf4, tokens) for tokens in course.tokens}
    one = theirs.get(course.trial_tokens)
    best: tuple[float, Point] | None = None
    for tokens in course.tokens:
        slots, length = max(1, tokens // course.trial_tokens), min(tokens, course.trial_tokens)
        ours = _ours(course, device, name, nf4, slots, length)
        if ours is None:
            print(f"{kind}: {slots} trials of {length} tokens do not fit", flush=True)
            break
        speed, shape = tokens / ours.step_s, f"{kind}, {tokens} tokens a step as {slots} trials"
        if one is not None and length == course.trial_tokens:
            best = max(best or (0.0, ours), (speed, ours), key=lambda each: each[0])
            yield _faster(f"{shape}, against PEFT, one after another", "tokens/s", speed, length / one.step_s, ours)
        if (same := theirs[tokens]) is not None:
            yield _faster(f"{shape}, against PEFT, one trial", "tokens/s", speed, tokens / same.step_s, ours)
            if ours.peak_gb:
                figure = f"{shape}, against PEFT, one trial: peak memory"
                yield Row(figure, "GB", *_memory(ours, same), None, 1)
    if best is not None and one is not None:
        bounds = (4.0, 8.0) if name == "1B Llama" and not nf4 else (None, None)
        figure = f"{kind}, trials of {course.trial_tokens} tokens, the best pack against eager PEFT"
        yield _faster(figure, "tokens/s", best[0], course.trial_tokens / one.step_s, best[1], *bounds)


def _ours(course: Course, device: str, name: str, nf4: bool, slots: int, length: int) -> Point | None:
    try:
        loaded = base(name, course.precision, nf4=nf4, device=device)
        return timed_step(pack_step(loaded, slots, 1, length), course.rounds, device)
    except torch.OutOfMemoryError:
        return None
    finally:
        _forget()


def _theirs(course: Course, device: str, name: str, nf4: bool, tokens: int) -> Point | None:
    """PEFT over bf16 weights under autocast with `tokens` tokens of one trial a step; None where they do not fit."""
    length = min(tokens, course.trial_tokens)
    mode = "half" if course.precision != "fp32" else "fp32"
    try:
        step = peft_step(name, mode, max(1, tokens // length), length, device, nf4=nf4)
        return timed_step(step, course.rounds, device)
    except torch.OutOfMemoryError:
        return None
    finally:
        _forget()


def _faster(
    figure: str,
    unit: str,
    ours: float,
    theirs: float,
    point: Point,
    reach: float | None = None,
    aim: float | None = None,
    note: str = "",
) -> Row:
    ratio = round(ours / theirs, 2)
    return Row(figure, unit, round(ours, 1), round(theirs, 1), ratio, point.spread, point.rounds, reach, aim, note=note)


def _limit(figure: str, found: float, limit: float) -> Row:
    ratio = round(limit / max(found, limit / 1e3), 1)
    return Row(figure, "rel.", float(f"{found:.2g}"), limit, ratio, None, 1, 1.0, held=found <= limit)


def _memory(ours: Point, theirs: Point) -> tuple[float, float, float]:
    return round(ours.peak_gb, 2), round(theirs.peak_gb, 2), round(theirs.peak_gb / ours.peak_gb, 2)


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(found: list[Row]) -> str:
    """All rows as one Markdown table."""
    lines = ["| figure | ours | baseline | ratio | reach | aim | ok |", "|---|---|---|---|---|---|---|"]
    for row in found:
        ok = {True: "yes", False: "no", None: ""}[row.ok]
        bounds = f"{'' if row.reach is None else row.reach} | {'' if row.aim is None else row.aim}"
        lines.append(
            f"| {row.figure} | {row.ours} {row.unit} | {row.baseline} {row.unit} | {row.ratio} | {bounds} | {ok} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print rows as they come and the table at the end, keep the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and points")
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it run at all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="where rows are kept; default: benchmarks/results, but for --small")
    asked = parser.parse_args()
    if asked.out is not None:
        rows.RESULTS = asked.out
    course = SMALL if asked.small else QUICK if asked.quick else WHOLE
    name = torch.cuda.get_device_name() if asked.device.startswith("cuda") else None
    found = []
    for row in measure(course, asked.device):
        found.append(row)
        if asked.small and asked.out is None:
            print(row, flush=True)
        else:
            print(rows.keep(row, "gpu", describe(name)), flush=True)
    print(table(found), flush=True)
    if wrong := [row.figure for row in found if row.unit == "rel." and not row.ok]:
        raise SystemExit(f"the numbers are wrong, so nothing was timed: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
