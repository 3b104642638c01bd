"""A whole plan of a few seconds: one task of forty short rows, a random two-layer BERT, two trials, nothing served."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

GLAD = ["good", "great", "love", "thanks", "cheap", "fast", "please", "small", "blue", "day"]
SORRY = ["bad", "awful", "hate", "broken", "slow", "late", "crash", "never", "expensive", "night"]


def write_rows(path: Path, count: int = 40, seed: int = 0) -> Path:
    """`count` rows of two labels, told apart by their words; the same for the same arguments."""
    rows = []
    for index in range(count):
        words, label = (GLAD, "glad") if index % 2 else (SORRY, "sorry")
        text = " ".join(words[(index * step + seed) % len(words)] for step in (1, 3, 7)) + f" order {index}"
        rows.append(json.dumps({"text": text, "label": label}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path


def write_plan(folder: Path, base: Path, **changes: object) -> Path:
    """Lay the plan, its rows and a copy of `base` below `folder`; `changes` replace keys at the top of the plan."""
    write_rows(folder / "data" / "mood.jsonl")
    if not (folder / "base").exists():
        shutil.copytree(base, folder / "base")
    plan = {
        "version": 1,
        "name": "tiny",
        "base": {"source": "base"},
        "tasks": {
            "mood": {
                "data": {"train": "data/mood.jsonl", "split": {"validation": 0.2, "test": 0.25}},
                "training": {
                    "method": {"kind": "lora", "rank": 2},
                    "learning_rate": 0.01,
                    "epochs": 1,
                    "batch_size": 8,
                    "max_length": 16,
                },
            }
        },
        **changes,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


SEARCH = {"trials": 2, "rungs": [0.5, 1.0], "space": {"method.rank": [1, 2]}}


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a user at a terminal: none of the variables that would move the home or the cluster."""
    ours = ("PETL_RAY_", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def command(*words: str) -> list[str]:
    """The words that start `petl-ray` with this interpreter."""
    return [sys.executable, "-m", "petl_ray.cli", *words]


def call(folder: Path, *words: str, limit_s: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `petl-ray` in `folder` to its end."""
    return subprocess.run(
        command(*words), cwd=folder, env=surroundings(**environment), capture_output=True, text=True, timeout=limit_s
    )
