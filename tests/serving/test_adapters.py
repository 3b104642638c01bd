"""The shelf: nothing in use gives way, nothing unproven answers, what is broken stays out."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from petl_ray.errors import AdapterError, CapacityError, TemporaryError
from petl_ray.serving.adapters import Shelf, State
from petl_ray.serving.engine import Engine
from petl_ray.serving.names import Group, Named
from tests.serving.world import World


class Bench:
    """An engine in the shelf's own words: slots as a dictionary, so that every install and clear is seen."""

    def __init__(self) -> None:
        self.slots: dict[int, str] = {}
        self.refuse: set[str] = set()
        self.company: dict[str, set[str]] = {}
        self.proof_s = 0.0

    def read(self, named: Named, directory: Path) -> Any:
        return named.task

    def install(self, slot: int, prepared: Any) -> None:
        assert slot not in self.slots, "a slot in use was written over"
        self.slots[slot] = prepared

    def prove_alone(self, slot: int, prepared: Any) -> None:
        if prepared in self.refuse:
            raise AdapterError(prepared, "gives other answers")

    def prove_beside(self, slot: int, prepared: Any, company: Mapping[int, Any]) -> None:
        assert all(self.slots[other] == task for other, task in company.items())
        self.company[prepared] = set(company.values())
        time.sleep(self.proof_s)

    def kind(self, prepared: Any) -> Any:
        return prepared[0]

    def clear(self, slot: int) -> None:
        del self.slots[slot]


class Shop:
    """A shelf over a bench, with named adapters that differ by task, and a store that can be away."""

    def __init__(self, world: World, slots: int) -> None:
        self._adapter = world.adapter("x", method="head")
        self.bench, self.away, self.fetched = Bench(), False, 0
        self.shelf = Shelf(self.bench, self._fetch, ThreadPoolExecutor(1), slots)

    def named(self, task: str) -> Named:
        return Named(task, 1, 1, f"{task}-digest", self._adapter)

    def states(self) -> dict[str, str]:
        return {row.get("task", digest): row["state"] for digest, row in self.shelf.report().items()}

    async def ready(self, *tasks: str) -> None:
        for task in tasks:
            async with self.shelf.hold(self.named(task)):
                pass

    def _fetch(self, named: Named) -> Path:
        self.fetched += 1
        if self.away:
            raise TemporaryError("store", "is away")
        return Path()


def play(world: World, slots: int, scene: Callable[[Shop], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scene(Shop(world, slots))

    asyncio.run(asyncio.wait_for(whole(), 20))


async def _soon(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_many_requests_for_an_absent_adapter_load_it_once(world: World) -> None:
    async def scene(shop: Shop) -> None:
        await asyncio.gather(*(shop.ready("a") for _ in range(20)))
        assert (shop.fetched, shop.states()) == (1, {"a": "READY"})

    play(world, 2, scene)


def test_the_idle_adapter_that_was_used_longest_ago_gives_way(world: World) -> None:
    async def scene(shop: Shop) -> None:
        await shop.ready("a", "b", "a", "c")
        assert shop.states() == {"a": "READY", "c": "READY"}
        assert sorted(shop.bench.slots.values()) == ["a", "c"]

    play(world, 2, scene)


def test_what_a_name_stands_for_keeps_its_slot(world: World) -> None:
    async def scene(shop: Shop) -> None:
        shop.shelf.pin([shop.named("a")])
        await shop.ready("a", "b", "c", "d")
        assert shop.states() == {"a": "READY", "d": "READY"}
        shop.shelf.pin([shop.named("a"), shop.named("d")])
        with pytest.raises(CapacityError, match="held by named adapters"):
            await shop.ready("e")
        assert sorted(shop.bench.slots.values()) == ["a", "d"]

    play(world, 2, scene)


def test_an_adapter_in_use_drains_before_its_slot_is_given_away(world: World) -> None:
    async def scene(shop: Shop) -> None:
        async with AsyncExitStack() as requests:
            held = await requests.enter_async_context(shop.shelf.hold(shop.named("a")))
            coming = asyncio.create_task(shop.ready("b"))
            await _soon(lambda: held.state is State.DRAINING)
            again = asyncio.create_task(shop.ready("a"))
            await asyncio.sleep(0.05)
            assert shop.bench.slots == {0: "a"}
            assert not coming.done() and not again.done()
        await coming
        await again
        assert shop.states() == {"a": "READY"}

    play(world, 1, scene)


def test_who_waited_for_an_adapter_is_answered_before_its_slot_is_given_away(world: World) -> None:
    """The next claimant of the slot comes right between an adapter's proof and the request that waits for it."""

    async def scene(shop: Shop) -> None:
        loop, proven = asyncio.get_running_loop(), threading.Event()

        def prove(slot: int, prepared: Any, company: Mapping[int, Any]) -> None:
            if prepared == "b" and not proven.is_set():
                loop.call_soon_threadsafe(time.sleep, 0.2)
                proven.set()

        def read(named: Named, directory: Path) -> Any:
            if named.task == "c":
                proven.wait()
                time.sleep(0.05)
            return named.task

        shop.bench.prove_beside, shop.bench.read = prove, read  # type: ignore[method-assign]
        await asyncio.gather(shop.ready("b"), shop.ready("c"))
        assert (shop.fetched, shop.states()) == (2, {"c": "READY"})

    play(world, 1, scene)


def test_a_broken_adapter_stays_out_and_its_slot_is_free_again(world: World) -> None:
    async def scene(shop: Shop) -> None:
        shop.bench.refuse = {"bad"}
        for _ in range(3):
            with pytest.raises(AdapterError, match="gives other answers"):
                await shop.ready("bad")
        await shop.ready("good")
        assert shop.states() == {"bad": "BROKEN", "good": "READY"}
        assert (shop.fetched, shop.bench.slots) == (2, {0: "good"})

    play(world, 1, scene)


def test_an_adapter_that_starts_answering_nonsense_is_retired_when_its_requests_are_done(world: World) -> None:
    async def scene(shop: Shop) -> None:
        async with shop.shelf.hold(shop.named("a")) as entry:
            await shop.shelf.fail(entry, AdapterError("a", "answered NaN"))
            await asyncio.sleep(0.02)
            assert shop.bench.slots == {0: "a"}
        await _soon(lambda: not shop.bench.slots)
        with pytest.raises(AdapterError, match="answered NaN"):
            await shop.ready("a")
        await shop.ready("b")

    play(world, 1, scene)


def test_a_store_that_is_away_delays_an_adapter_and_does_not_condemn_it(world: World) -> None:
    async def scene(shop: Shop) -> None:
        shop.away = True
        with pytest.raises(TemporaryError, match="is away"):
            await shop.ready("a")
        assert shop.shelf.report()["a-digest"] == {"state": "LOADING", "reason": "store: is away."}
        shop.away = False
        shop.shelf.pin([shop.named("a")])
        await _soon(lambda: shop.states() == {"a": "READY"})

    play(world, 1, scene)


def test_a_newcomer_is_proven_beside_one_neighbour_of_every_kind(world: World) -> None:
    async def scene(shop: Shop) -> None:
        await shop.ready("lora-1", "head-1", "lora-2", "bottleneck-1")
        assert {task[0] for task in shop.bench.company["bottleneck-1"]} == {"l", "h"}
        assert len(shop.bench.company["bottleneck-1"]) == 2

    play(world, 8, scene)


def test_of_adapters_that_come_together_each_is_proven_beside_those_before_it(world: World) -> None:
    async def scene(shop: Shop) -> None:
        tasks = ["lora-1", "head-1", "bottleneck-1"]
        shop.bench.proof_s = 0.05
        shop.shelf.pin(map(shop.named, tasks))
        await _soon(lambda: shop.states() == dict.fromkeys(tasks, "READY"))
        met = shop.bench.company
        assert sorted(len(met[task]) for task in tasks) == [0, 1, 2]
        assert all(one in met[other] or other in met[one] for one, other in itertools.combinations(tasks, 2))

    play(world, 8, scene)


def test_a_newcomer_is_proven_beside_one_that_is_leaving_and_still_answers(world: World) -> None:
    async def scene(shop: Shop) -> None:
        async with shop.shelf.hold(shop.named("a")) as held:
            held.move(State.DRAINING)
            await shop.ready("b")
            assert shop.bench.company["b"] == {"a"}

    play(world, 2, scene)


def test_a_slow_store_delays_nobody_who_is_ready(world: World) -> None:
    async def scene(shop: Shop) -> None:
        await shop.ready("a")
        door = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(named: Named) -> Path:
            asyncio.run_coroutine_threadsafe(door.wait(), loop).result(10)
            return Path()

        shop.shelf._fetch = slow
        coming = asyncio.create_task(shop.ready("b"))
        await _soon(lambda: shop.states().get("b") == "LOADING")
        await shop.ready("a")
        assert not coming.done()
        door.set()
        await coming

    play(world, 2, scene)


def test_the_engine_refuses_an_adapter_whose_card_says_something_else_than_its_release(world: World) -> None:
    adapter = world.adapter("a", ("no", "yes"))
    group = Group(base=world.base.base, task_type="classification")
    engine = Engine(group, slots=1, threads=1, device="cpu")
    directory = world.fetch(adapter)
    for change in ({"task": "b"}, {"labels": ("yes", "no")}):
        with pytest.raises(AdapterError, match=rf"card\.json {next(iter(change))}"):
            engine.read(Named("a", 1, 1, adapter.digest, adapter.model_copy(update=change)), directory)
    assert engine.read(Named("a", 1, 1, adapter.digest, adapter), directory).card.labels == ("no", "yes")
