"""One search in a process of its own against a running cluster, to be killed from outside.

python -m tests.tuning.fake_training.one_search ADDRESS ROOT SCHEDULER
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from petl_ray.artifact import Dataset
from petl_ray.tuning.on_ray import search
from tests.plainstep import PlainStep
from tests.tuning.fake_training import train
from tests.tuning.fake_training.asking import ask
from tests.tuning.fake_training.spec import MiniSpec


class AtomicStep(PlainStep):
    """A plain step whose facts and checkpoints survive a kill at any moment: written aside, then renamed."""

    def record(self, key: str, value: Mapping[str, Any]) -> None:
        facts = self.recorded()
        facts.setdefault(key, dict(value))
        aside = self.root / "facts.part"
        aside.write_text(json.dumps(facts))
        aside.rename(self.root / f"facts-{self.name}.json")

    def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
        home = self.root / "progress" / self.name
        home.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=self.root)) / "progress"
        shutil.copytree(directory, aside)
        (aside / "note.json").write_text(json.dumps(dict(note)))
        aside.rename(home / f"{len(list(home.iterdir())):06d}")


def main(address: str, root: str, scheduler: str) -> None:
    step = AtomicStep(Path(root))
    dataset = Dataset.model_validate_json((Path(root) / "dataset.json").read_text())
    ray.init(address=address, log_to_driver=False)
    found = search(ask(MiniSpec(pause_s=1.0), scheduler=scheduler), dataset, train=train, step=step)
    print(json.dumps({"digest": found.digest, **found.about}))


if __name__ == "__main__":
    main(*sys.argv[1:])
