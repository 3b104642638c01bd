"""What training writes is what serving proves and answers: the two rooms meet only in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petl_ray.models import BaseSpec, LoadedBase, load_base, resolve
from petl_ray.training import TrainSpec, train
from tests.plainstep import PlainStep
from tests.serving.site import Site, play
from tests.serving.world import World
from tests.training.questions import dataset


@pytest.mark.parametrize(("precision", "quantization"), [("fp32", "none"), ("bf16", "none"), ("fp32", "nf4")])
@pytest.mark.parametrize("causal", [False, True], ids=["classification", "causal_lm"])
def test_a_trained_adapter_gives_its_golden_answers_here(
    step: PlainStep, tiny_bert: Path, tiny_llama: Path, tmp_path: Path, causal: bool, precision: Any, quantization: Any
) -> None:
    source = BaseSpec(source=str(tiny_llama if causal else tiny_bert), precision=precision, quantization=quantization)
    locked, task_type = resolve(source), "causal_lm" if causal else "classification"
    metric = "loss" if causal else "accuracy"
    spec = TrainSpec(base=locked, task_type=task_type, epochs=1, metric=metric, max_length=32)
    trained = train(spec, dataset(step, causal=causal), step=step)
    base: LoadedBase = load_base(locked, task_type)
    world = World(tmp_path, base)
    directory = step.fetch(trained)
    for entry in trained.files:
        assert world.keep(directory / entry.path).sha256 == entry.sha256
    world.promote(trained, 1)

    async def scene(site: Site) -> None:
        health = await site.settled()
        assert health["converged"], health["behind"]
        body = {"model": "moods", "prompt": "the red box one", "max_tokens": 3} if causal else None
        path = "/v1/completions" if causal else "/v1/classify"
        reply = await site.client.post(path, json=body or {"model": "moods", "input": "I love it"})
        assert reply.status_code == 200, reply.text
        provenance = reply.json()["provenance"]
        assert (provenance["adapter"], provenance["precision"]) == (trained.digest, precision)
        assert provenance["quantization"] == quantization

    play(world, scene)
