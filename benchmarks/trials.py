"""Trials as the process of a pack has them, without Tune and Ray: their rows, their orders, a pack that answers, and
whether its session takes the steps that PEFT takes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.equality import check
from benchmarks.models import ALPHA, LABELS, RANK, SOURCE, Rows, bank_of, peft_step
from benchmarks.turns import take_turn, write_rows
from petl_ray.models import BaseSpec, resolve
from petl_ray.training import TrainSpec
from petl_ray.training.session import open_session
from petl_ray.tuning.ledger import read_files
from petl_ray.tuning.pack import Order, Pack

BATCH, LENGTH = 8, 32  # rows and tokens of a step
STEPS_OF_EPOCH, VALIDATION_ROWS = 4, 32
SEARCH = "bench"

Answers = Callable[[Sequence[Order]], list[dict[str, Any]]]


def recipe(precision: str = "auto", **changes: Any) -> TrainSpec:
    """A LoRA of rank 8 on all linear maps of MiniLM, 8 x 32 tokens a step."""
    asked = {
        "base": resolve(BaseSpec.model_validate({"source": SOURCE, "precision": precision})),
        "method": {"kind": "lora", "rank": RANK, "alpha": ALPHA, "targets": "all-linear"},
        "batch_size": BATCH,
        "max_length": LENGTH,
    }
    return TrainSpec.model_validate(asked | changes)


def seeded(spec: TrainSpec, count: int) -> list[TrainSpec]:
    """The same question with so many seeds."""
    return [spec.model_copy(update={"seed": seed}) for seed in range(count)]


def order(number: int, spec: TrainSpec, rung: int, target: float) -> Order:
    """Trial `number` asks to be trained until that share (0…1] of its horizon, where its rung is."""
    name = f"{TrainSpec.__module__}:{TrainSpec.__qualname__}"
    return Order(SEARCH, number, rung, target, spec.model_dump(mode="json"), name, LABELS)


@contextlib.contextmanager
def driven(slots: int) -> Iterator[Answers]:
    """A pack of so many slots on one thread, in this process: it is asked all orders at once, as many as may wait at its
    door, and the answers come when all are there."""
    pack = Pack("petl_ray.training.session:open_session", slots=slots, threads=1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = write_rows(Path(folder) / "data", STEPS_OF_EPOCH * BATCH, VALIDATION_ROWS, LENGTH)
            pack.put_data(SEARCH, read_files(rows))
        yield partial(_asked, pack)
    finally:
        pack.close()


def _asked(pack: Pack, orders: Sequence[Order]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(orders)) as callers:
        return list(callers.map(pack.advance, orders))


def check_session(precision: str) -> None:
    """Raises AssertionError where a session of one slot does not take the steps that PEFT takes over weights of that
    precision, from equal weights on equal rows."""
    # what a session does beside the bare loop is off; all rows are one batch, so that their order means nothing
    bare: dict[str, Any] = {
        "epochs": 100,
        "schedule": "constant",
        "warmup_share": 0.0,
        "gradient_clip": None,
        "weight_decay": 0.01,
    }
    spec = recipe(precision, **bare)
    session = open_session(spec, slots=1, threads=1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            session.admit("one", spec, write_rows(Path(folder) / "data", BATCH, BATCH, LENGTH))
        session.aim("one", 1.0)
        encoded = session.occupant("one").rows.train
        ids = torch.tensor([row.input_ids for row in encoded])
        rows = Rows(ids, torch.ones_like(ids), torch.tensor([row.target for row in encoded]))
        theirs = peft_step(rows, precision != "fp32", like=bank_of(precision, 1), precision=precision)
        contestants = {"PEFT": theirs, "session": lambda: float(take_turn(session, ["one"]))}
        check(contestants, dict.fromkeys(contestants, precision))
    finally:
        session.close()
