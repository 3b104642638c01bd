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
_FILLERS = ["the", "a", "my", "your", "our", "it", "this", "that", "is", "was", "app", "screen"]

PLAN = """
version: 1
name: {name}
owner: chaos
base: {{source: {base}, precision: fp32}}
defaults:
  data: {{split: {{validation: 0.2, test: 0.3}}}}
  training:
    method: {{kind: lora, rank: 4, alpha: 8, targets: all-linear}}
    learning_rate: 1e-2
    epochs: 3
    batch_size: 16
    max_length: 16
    checkpoint_every_s: 60
  search:
    trials: 4
    generation: 2
    startup_trials: 2
    rungs: [0.5, 1.0]
    decisions: rung
    space:
      learning_rate: {{loguniform: [3e-3, 2e-2]}}
      method.rank: [2, 4]
  evaluation: {{resamples: 200}}
  gate: {{yardsticks: [majority]}}
tasks:
  mood:
    data: {{train: {rows}/mood.jsonl}}
    training: {{checkpoint_every_s: 0.000001}} # after every step
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


def _write_rows(path: Path, words: dict[str, str], seed: int, count: int = 200) -> None:
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        label = draw.choice(sorted(words))
        picked = [*draw.choices(words[label].split(), k=3), *draw.choices(_FILLERS, k=2)]
        draw.shuffle(picked)
        lines.append(json.dumps({"text": " ".join(picked), "label": label}) + "\n")
    path.write_text("".join(lines))
