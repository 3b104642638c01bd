"""The shelf of one replica: adapters come up from the store into slots, prove themselves, serve, and give way.

    LOADING   being fetched, verified, read, installed and proven; not answering yet
    READY     proven; answers
    DRAINING  about to give its slot away; the requests that hold it finish, new ones wait for it to come back
    BROKEN    refused, with the reason; never answers

All state changes on one event loop; files are fetched and read on other threads, the bank is touched only on the one
device thread, between two batches. Nothing in use is evicted, and what a name stands for keeps its slot.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from petl_ray.errors import AdapterError, CapacityError, PetlRayError, TemporaryError
from petl_ray.serving.names import Named


class State(StrEnum):
    """Where an adapter stands."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    BROKEN = "BROKEN"


class Bench(Protocol):
    """What the shelf needs of an engine. `read` runs on any thread, the others on the device thread only."""

    def read(self, named: Named, directory: Path) -> Any:
        """The adapter's files, validated; raises AdapterError for anything odd. Touches no slot."""

    def install(self, slot: int, prepared: Any) -> None:
        """Put it into a free slot."""

    def prove_alone(self, slot: int, prepared: Any) -> None:
        """Raise AdapterError unless the slot gives its golden answers by itself."""

    def prove_beside(self, slot: int, prepared: Any, company: Mapping[int, Any]) -> None:
        """Raise AdapterError unless the slot and its company (slot → prepared) all give theirs in one batch."""

    def kind(self, prepared: Any) -> Any:
        """What makes it a different kind of neighbour."""

    def clear(self, slot: int) -> None:
        """Empty a slot."""


@dataclass(eq=False)
class Entry:
    """One adapter on the shelf. `refs` counts requests that hold or await it; `moved` is set whenever it changes state."""

    named: Named
    state: State = State.LOADING
    slot: int | None = None
    prepared: Any = None
    reason: PetlRayError | None = None
    refs: int = 0
    used: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def move(self, state: State, reason: PetlRayError | None = None) -> None:
        """Change state and wake everybody who waits for that."""
        self.state, self.reason = state, reason
        self.wake()

    def wake(self) -> None:
        """Wake whoever waits for a change."""
        self.moved.set()
        self.moved = asyncio.Event()


class Shelf:
    """`slots` places over one engine. `fetch(named)` gives a directory with the adapter's verified files."""

    def __init__(self, bench: Bench, fetch: Callable[[Named], Path], device: Executor, slots: int) -> None:
        self._bench, self._fetch, self._device = bench, fetch, device
        self._free = list(range(slots))[::-1]
        self._entries: dict[str, Entry] = {}
        self._pinned: frozenset[str] = frozenset()
        self._delayed: dict[str, TemporaryError] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._clock = itertools.count(1)
        self._room = asyncio.Lock()
        self._proving = asyncio.Lock()

    def pin(self, named: Iterable[Named]) -> None:
        """What names stand for now: loaded if it is not there, kept while it is named. Returns at once."""
        wanted = {one.digest: one for one in named}
        self._pinned = frozenset(wanted)
        for digest, one in wanted.items():
            if digest not in self._entries:
                self._start(one)

    @asynccontextmanager
    async def hold(self, named: Named) -> AsyncIterator[Entry]:
        """The adapter, READY and kept in its slot until the block ends; loaded first if it is not there.

        Raises AdapterError if it is broken, CapacityError if no slot can be freed, TemporaryError if the store is away.
        """
        entry = await self._taken(named)
        entry.used = next(self._clock)
        try:
            yield entry
        finally:
            self._let_go(entry)

    def report(self) -> dict[str, dict[str, Any]]:
        """digest → task, version, state, slot, requests that hold it, and the reason if it is refused or delayed."""
        rows = {
            digest: {
                "task": entry.named.task,
                "version": entry.named.version,
                "state": str(entry.state),
                "slot": entry.slot,
                "refs": entry.refs,
                "reason": str(entry.reason) if entry.reason else None,
            }
            for digest, entry in self._entries.items()
        }
        for digest, delay in self._delayed.items():
            rows.setdefault(digest, {"state": str(State.LOADING), "reason": str(delay)})
        return rows

    async def fail(self, entry: Entry, reason: AdapterError) -> None:
        """Take an adapter that answers nonsense out of service; its slot is emptied when nobody holds it."""
        if entry.state is not State.BROKEN:
            entry.move(State.BROKEN, reason)
            self._spawn(self._retire(entry))

    async def close(self) -> None:
        """Give up all loads that are under way."""
        for task in self._loads:
            task.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)

    def _start(self, named: Named) -> Entry:
        entry = self._entries[named.digest] = Entry(named)
        self._spawn(self._load(entry))
        return entry

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _taken(self, named: Named) -> Entry:
        """The adapter with one more reference.

        Who waits for a load holds what is loaded, so that it answers at least once before its slot is given away:
        without that, two adapters that want one slot could put each other out for ever.
        """
        while True:
            entry = self._entries.get(named.digest) or self._start(named)
            if entry.state is State.DRAINING:
                await entry.moved.wait()
                continue
            entry.refs += 1
            try:
                while entry.state is State.LOADING:
                    await entry.moved.wait()
                if entry.reason:
                    raise entry.reason
            except BaseException:
                self._let_go(entry)
                raise
            return entry

    def _let_go(self, entry: Entry) -> None:
        entry.refs -= 1
        entry.wake()

    async def _load(self, entry: Entry) -> None:
        """From the store to READY, or to BROKEN with the reason, or off the shelf where trying later may help."""
        try:
            directory = await asyncio.to_thread(self._fetch, entry.named)
            entry.prepared = await asyncio.to_thread(self._bench.read, entry.named, directory)
            entry.slot = await self._slot_for(entry)
            await self._on_device(self._bench.install, entry.slot, entry.prepared)
            await self._on_device(self._bench.prove_alone, entry.slot, entry.prepared)
            await self._join(entry)
        except (TemporaryError, CapacityError) as reason:
            self._delayed[entry.named.digest] = reason if isinstance(reason, TemporaryError) else _later(reason)
            await self._empty(entry)
            del self._entries[entry.named.digest]
            entry.move(State.BROKEN, reason)
        except PetlRayError as reason:
            await self._refuse(entry, reason)
        except Exception as error:  # noqa: BLE001 - whatever a strange file makes a library raise stays with this adapter
            name = type(error).__name__
            await self._refuse(
                entry, AdapterError(entry.named.model, f"{name}: {str(error)[:300]}", "it cannot be installed")
            )

    async def _join(self, entry: Entry) -> None:
        """READY once it is proven beside one neighbour of every kind that answers; they are held meanwhile.

        One newcomer at a time, from the choice of its company to its own READY: of two that come together, the second
        is proven beside the first.
        """
        async with self._proving:
            at_work = (State.DRAINING, State.READY)
            answering = [one for one in self._entries.values() if one.state in at_work and one.slot is not None]
            company = list({self._bench.kind(one.prepared): one for one in answering}.values())
            for other in company:
                other.refs += 1
            try:
                beside = {other.slot: other.prepared for other in company}
                await self._on_device(self._bench.prove_beside, entry.slot, entry.prepared, beside)
            finally:
                for other in company:
                    self._let_go(other)
            self._delayed.pop(entry.named.digest, None)
            entry.used = next(self._clock)
            entry.move(State.READY)

    async def _refuse(self, entry: Entry, reason: PetlRayError) -> None:
        await self._empty(entry)
        entry.move(State.BROKEN, reason)

    async def _retire(self, entry: Entry) -> None:
        """Wait until nobody holds it, then empty its slot."""
        while entry.refs:
            await entry.moved.wait()
        await self._empty(entry)

    async def _empty(self, entry: Entry) -> None:
        slot, entry.slot, entry.prepared = entry.slot, None, None
        if slot is not None:
            await self._on_device(self._bench.clear, slot)
            self._free.append(slot)

    async def _slot_for(self, entry: Entry) -> int:
        """A free slot; if there is none, that of the adapter without a name that was used longest ago.

        An idle one gives way first; else the oldest drains. Raises CapacityError when all have names.
        """
        async with self._room:
            while not self._free:
                held = [one for one in self._entries.values() if one.slot is not None and one is not entry]
                spare = [one for one in held if one.named.digest not in self._pinned]
                if not spare:
                    raise CapacityError(
                        entry.named.model,
                        f"all {len(held)} slots are held by named adapters",
                        "nothing that is in use gives way",
                        "Raise max_adapters in the plan's serving section and deploy again",
                    )
                victim = min(spare, key=lambda one: (one.state is State.LOADING, one.refs > 0, one.used))
                if victim.state is State.LOADING:  # it must first be proven, or refused
                    await victim.moved.wait()
                    continue
                if victim.state is State.READY:
                    victim.move(State.DRAINING)
                await self._retire(victim)
                if victim.state is State.DRAINING:
                    del self._entries[victim.named.digest]
                    victim.wake()
            return self._free.pop()

    async def _on_device(self, work: Callable[..., None], *values: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._device, work, *values)


def _later(reason: CapacityError) -> TemporaryError:
    return TemporaryError(reason.what, reason.found, reason.why, reason.do)
