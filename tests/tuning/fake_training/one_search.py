"""One search in a process of its own against a running cluster, to be killed from outside.

python -m tests.tuning.fake_training.one_search ADDRESS ROOT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray

from petl_ray.artifact import Dataset
from petl_ray.tuning.on_ray import search
from tests.plainstep import PlainStep
from tests.tuning.fake_training import train
from tests.tuning.fake_training.asking import ask
from tests.tuning.fake_training.spec import MiniSpec


def main(address: str, root: str) -> None:
    step = PlainStep(Path(root))
    dataset = Dataset.model_validate_json((Path(root) / "dataset.json").read_text())
    ray.init(address=address, log_to_driver=False)
    found = search(ask(MiniSpec(pause_s=1.0)), dataset, train=train, step=step)
    print(json.dumps({"digest": found.digest, **found.about}))


if __name__ == "__main__":
    main(*sys.argv[1:])
