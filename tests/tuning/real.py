"""Orders of real trainings on a tiny base, for packs that train them side by side."""

from __future__ import annotations

from pathlib import Path

from petl_ray.tuning.pack import Order
from tests.bases import make_tiny_bert
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe


def orders_and_rows(folder: Path) -> tuple[list[Order], dict[str, bytes]]:
    """Four trials that differ in rank, targets, dropout, rate and batch, and the rows they train on."""
    base = locked(make_tiny_bert(folder / "base"))
    step = PlainStep(folder / "rows")
    rows = {path.name: path.read_bytes() for path in sorted(step.fetch(dataset(step)).iterdir())}
    changes = (
        {"method": {"kind": "lora", "rank": 2}},
        {"method": {"kind": "lora", "rank": 8, "targets": "all-linear", "dropout": 0.1}, "batch_size": 4},
        {"method": {"kind": "bottleneck", "size": 4}, "learning_rate": 0.01, "batch_size": 4},
        {"method": {"kind": "lora", "rank": 3}, "learning_rate": 0.02, "batch_size": 2, "seed": 5},
    )
    orders = [
        Order("q0", at, 0, 0.3, recipe(base, **change).model_dump(mode="json"), "petl_ray.training.spec:TrainSpec", 3)
        for at, change in enumerate(changes)
    ]
    return orders, rows
