"""Two small tasks over one small base as files: what every test of this folder runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

_MOODS = {
    "good": "good great love thanks fast cheap",
    "bad": "bad awful hate slow broken late",
    "plain": "order bill card account phone email",
}
_TIMES = {"urgent": "urgent today never login crash password", "later": "tomorrow always team box road night"}
_FILLERS = "the a my your our it this that is was app screen".split()

PLAN = """
version: 1
name: {name}
owner: chaos
base: {{source: {base}, precision: fp32}}
defaults:
  data: {{split: {{validation: 0.2, test: 0.3}}}}
  training:
    method: {{kind: lora, rank: 2, alpha: 4, targets: query_value}}
    learning_rate: 5e-3
    epochs: 3
    batch_size: 16
    max_length: 16
    checkpoint_every_s: 0.001
  search:
    trials: 4
    generation: 2
    startup_trials: 2
    rungs: [0.5, 1.0]
    decisions: rung
    space:
      learning_rate: {{loguniform: [1e-3, 2e-2]}}
      method.rank: [2, 4]
  evaluation: {{resamples: 200}}
tasks:
  mood:
    data: {{train: {rows}/mood.jsonl}}
  time:
    data: {{train: {rows}/time.jsonl}}
"""

PLACEMENT = """
name: {name}
ray: {ray}
cpus: 2
verbs:
  search: {{cpus: 1, packs: 1, slots: 4}}
  train: {{cpus: 1, packs: 1, slots: 4}}
"""


def write_tasks(directory: Path) -> None:
    """Two files of rows, made of words that the small base knows."""
    _write_rows(directory / "mood.jsonl", _MOODS, seed=1)
    _write_rows(directory / "time.jsonl", _TIMES, seed=2)


def write_plan(directory: Path, base: Path, name: str, serving: str = "") -> Path:
    """The plan `name` beside the rows; `serving` is the YAML of its serving part, if it has one."""
    path = directory / f"{name}.yaml"
    path.write_text(PLAN.format(name=name, base=base, rows=directory) + (f"serving: {serving}\n" if serving else ""))
    return path


def write_placement(directory: Path, ray: str) -> Path:
    """A placement with one pack, so that the parts of a run come one after the other, for that kind of Ray."""
    path = directory / f"placement-{ray}.yaml"
    path.write_text(PLACEMENT.format(name=ray, ray=ray))
    return path


def _write_rows(path: Path, words: dict[str, str], seed: int, rows_per_label: int = 60) -> None:
    draw = random.Random(seed)
    lines = []
    for number in range(rows_per_label):
        for label, own in words.items():
            picked = [*draw.sample(own.split(), 2), *draw.sample(_FILLERS, 4)]
            draw.shuffle(picked)
            text = " ".join([*picked, *str(number)])  # the number keeps rows apart
            lines.append(json.dumps({"text": text, "label": label}))
    path.write_text("\n".join(lines) + "\n")
