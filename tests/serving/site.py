"""A site of one process: a gateway over replicas, and a client of its HTTP face."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from petl_ray.serving.api import build_app
from petl_ray.serving.gateway import Gateway
from petl_ray.serving.names import Catalogue, Group
from petl_ray.serving.replica import Replica
from petl_ray.serving.spec import ServeSpec
from tests.serving.world import TEXTS, World

SPEC = ServeSpec(follow_s=0.05, max_adapters=4, max_body_bytes=4096, max_inputs=8, max_input_chars=500)


class Here:
    """Replicas of this process as a gateway's backend; requests go round."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas, self._turn = list(replicas), 0
        self.groups = {replicas[0].group.key}

    async def ask(self, group: str, model: str, texts: Any, pairs: Any, max_tokens: Any) -> dict[str, Any]:
        self._turn += 1
        return await self.replicas[self._turn % len(self.replicas)].answer(model, texts, pairs, max_tokens)

    async def survey(self, group: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        return [await replica.report(wanted) for replica in self.replicas]


class Site:
    """One gateway over replicas, and a client of its HTTP face."""

    def __init__(self, world: World, gateway: Gateway, backend: Here, client: httpx.AsyncClient) -> None:
        self.world, self.gateway, self.backend, self.client = world, gateway, backend, client

    async def settled(self) -> dict[str, Any]:
        """Health, once every name answers or is refused."""
        while True:
            await self.gateway.look()
            if self.gateway.view.settled and set(self.gateway.view.behind) <= self.gateway.view.refused:
                return self.gateway.health()
            await asyncio.sleep(0.02)

    async def classify(self, model: str, inputs: Any = TEXTS) -> httpx.Response:
        return await self.client.post("/v1/classify", json={"model": model, "inputs": list(inputs)})


def play(world: World, scene: Callable[[Site], Awaitable[None]], spec: ServeSpec = SPEC, replicas: int = 1) -> None:
    async def whole() -> None:
        group = Group(base=world.base.base, task_type=world.base.task_type)
        backend = Here([await Replica.start(group, spec, world.services) for _ in range(replicas)])
        gateway = Gateway(spec, Catalogue(world.services["database"]), backend)
        transport = httpx.ASGITransport(app=build_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            await scene(Site(world, gateway, backend, client))
        for replica in backend.replicas:
            await replica.close()

    asyncio.run(asyncio.wait_for(whole(), 60))
