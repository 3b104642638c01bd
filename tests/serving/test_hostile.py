"""What is broken or hostile stays out, closed, and its neighbours and the base are unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from petl_ray.serving.names import Catalogue
from tests.serving.site import Site, play
from tests.serving.world import World


def _hostile() -> dict[str, Callable[[Path], None]]:
    def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
        def spoil(directory: Path) -> None:
            path = directory / "adapter_model.safetensors"
            save_file(change(load_file(path)), path, metadata={"format": "pt"})

        return spoil

    def config(**changes: Any) -> Callable[[Path], None]:
        def spoil(directory: Path) -> None:
            path = directory / "adapter_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return spoil

    def cut(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    extra = {"base_model.model.bert.embeddings.word_embeddings.weight": torch.ones(4, 4)}
    return {
        "other weights than it was measured with": weights(lambda all_: {k: v * 1.01 for k, v in all_.items()}),
        "NaN": weights(lambda all_: {k: torch.full_like(v, torch.nan) for k, v in all_.items()}),
        "an extra key over the base": weights(lambda all_: {**all_, **extra}),
        "a missing key": weights(lambda all_: dict(list(all_.items())[1:])),
        "layer replication": config(layer_replication=[[0, 1], [0, 1]]),
        "another rank": config(r=4),
        "cut off": cut,
        "no golden answers": lambda directory: (directory / "golden.safetensors").unlink(),
    }


@pytest.mark.parametrize("case", sorted(_hostile()))
def test_a_hostile_adapter_stays_out_and_its_neighbours_and_the_base_are_unchanged(world: World, case: str) -> None:
    good = world.adapter("reviews", ("bad", "good"), seed=2)
    world.promote(good, 1)
    earlier = world.adapter("urgency", seed=1)
    world.promote(earlier, 1)

    async def scene(site: Site) -> None:
        await site.settled()
        [replica] = site.backend.replicas
        base = replica.engine.base.weights_digest()
        before = (await site.classify("reviews")).json()
        world.promote(world.adapter("urgency", seed=9, spoil=_hostile()[case]), 2)
        hostile = Catalogue(world.services["database"]).names()[0]["urgency"].digest
        health = await site.settled()
        assert health["refused"] == ["urgency"], health
        assert health["adapters"] == {"reviews": good.digest, "urgency": earlier.digest}
        assert (await site.classify("urgency")).json()["provenance"]["version"] == 1
        reply = await site.classify(f"urgency@{hostile}")
        assert reply.status_code == 503, reply.text
        assert "outputs" not in reply.json()
        assert (await site.classify("reviews")).json() == before
        assert replica.engine.base.weights_digest() == base

    play(world, scene)


def test_a_task_whose_only_adapter_is_broken_fails_closed_and_the_others_answer(world: World) -> None:
    world.promote(world.adapter("reviews", seed=2), 1)
    spoil = _hostile()["other weights than it was measured with"]
    world.promote(world.adapter("urgency", seed=1, spoil=spoil), 1)

    async def scene(site: Site) -> None:
        await site.settled()
        reply = await site.classify("urgency")
        assert reply.status_code == 503
        assert "golden answers alone" in reply.json()["error"]["message"]
        assert (await site.classify("reviews")).status_code == 200
        health = await site.client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (200, "following")

    play(world, scene)
