"""The packs of a search as Ray actors, which come up when the cluster has room for them and may be lost again."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import ray

from petl_ray.errors import CapacityError, PermanentError
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.ledger import Files
from petl_ray.tuning.pack import Order, Pack
from petl_ray.verb import Resources

NAMESPACE = "petl-ray"
RETRIES = 3  # of a trial, and of every pack on the average
_START_S = 5.0  # for the first pack of a search, where the cluster has room
_CHECK_S = 1.0


class PackLost(Exception):
    """A pack went away while it was asked something, or nobody waits for its answer any more."""


@dataclass
class PackActor:
    """One pack: `ready` is kept when its actor is up, which may be never; `holds` names the searches whose rows it has."""

    name: str
    actor: Any
    ready: Any
    up: bool = False
    holds: set[str] = field(default_factory=set)


class Packs:
    """The pack actors: asked for when first needed, used as they come up, replaced where one is lost.

    Nothing here waits for an actor that is not up, since its cores may be held by others for ever. A search goes on
    with the packs there are; those that come later join.
    """

    def __init__(self, hunts: list[Hunt], resources: Resources, door: str) -> None:
        self._hunts = {hunt.name: hunt for hunt in hunts}
        self._resources, self._door = resources, door
        self._prefix = f"petl-ray-pack-{hunts[0].step.name[:12]}-{uuid.uuid4().hex[:8]}"
        self._asked = max(1, resources.packs)
        self._packs: dict[int, PackActor] = {}  # no index is given twice
        self._opened = 0
        self._told: int | None = None
        self._rows: dict[str, Any] = {}
        self.under_way: dict[str, int] = {}  # trial key -> index of the pack that trains it now
        self.last: dict[str, int] = {}  # trial key -> index of the pack that trained it last

    @property
    def count(self) -> int:
        """How many packs are up."""
        return sum(pack.up for pack in self._packs.values())

    @property
    def lanes_each(self) -> int:
        """Orders that one pack is given at a time: one a slot, and one that waits for the next free slot."""
        return self._resources.slots + 1

    def look(self, patience_s: float = 0.0) -> None:
        """See which packs came up, waiting for the first of them no longer than `patience_s`."""
        coming = {pack.ready: index for index, pack in self._packs.items() if not pack.up}
        if patience_s:
            ray.wait(list(coming), timeout=patience_s)
        for ready in ray.wait(list(coming), num_returns=len(coming), timeout=0)[0] if coming else ():
            try:
                ray.get(ready)
                self._packs[coming[ready]].up = True
            except ray.exceptions.RayError as error:
                self._gone(coming[ready], error)
        if self._opened and self.count != self._told:
            self._told = self.count
            for hunt in self._hunts.values():
                if not hunt.over:
                    hunt.placed(self._told, self._asked)

    def choose(self, key: str) -> int | None:
        """The pack with the fewest orders; of equals the one that trained the trial last. None while none is up."""
        if not self._opened:
            for _ in range(self._asked):
                self._open()
            self.look(_START_S)
        busy = list(self.under_way.values())
        up = [index for index, pack in self._packs.items() if pack.up]
        return min(up, key=lambda index: (busy.count(index), self.last.get(key) != index, index), default=None)

    def prepare(self, order: Order, index: int) -> str | None:
        """Bring what `order` needs to pack `index`; returns the actor's name, None if it was lost."""
        pack, hunt = self._packs[index], self._hunts[order.search]
        checkpoint = hunt.ledger.checkpoint(order.number) if order.rung else None
        try:
            if order.search not in pack.holds:
                if order.search not in self._rows:
                    self._rows[order.search] = ray.put(hunt.rows())
                self._desk(index, "put_data", order.search, self._rows[order.search])
                pack.holds.add(order.search)
            if checkpoint is not None and self.last.get(order.key) != index:
                self._desk(index, "put_checkpoint", order.key, *checkpoint)
        except PackLost:
            return None
        self.last[order.key] = index
        return pack.name

    def files(self, key: str, rung: int) -> Files | None:
        """The checkpoint of a trial at `rung`, from the pack that trained it; None if that pack is gone.

        Raises PermanentError where the pack is there and the checkpoint is not.
        """
        try:
            found = cast("Files", self._desk(self.last.get(key), "checkpoint", key, rung))
        except PackLost:
            return None
        if not found:
            raise PermanentError(f"search, trial {key}", f"no checkpoint at rung {rung}", "its session saved nothing")
        return found

    def weigh(self, orders: list[Order]) -> Any:
        """A promise of the costs of `orders`; None while no pack is up."""
        index = self.choose(orders[0].key)
        return None if index is None else (index, self._packs[index].actor.weigh.remote(orders))

    def costs(self, promise: Any) -> list[dict[str, Any]] | None:
        """What was promised: None while it is not there, empty if the pack was lost.

        Raises PermanentError where the session cannot say.
        """
        index, answer = promise
        if not ray.wait([answer], timeout=0)[0]:
            return None
        try:
            return cast("list[dict[str, Any]]", ray.get(answer))
        except ray.exceptions.RayTaskError as error:
            raise PermanentError("search.limits", str(error).strip().splitlines()[-1], "no cost is known") from error
        except ray.exceptions.RayError as error:
            self._gone(index, error)
            return []

    def lost(self, key: str) -> None:
        """A trial broke: see whether its pack is still there, and bring the trial's checkpoint again."""
        index = self.under_way.pop(key, None)
        self.last.pop(key, None)
        with suppress(PackLost):
            self._desk(index, "__ray_ready__")

    def close(self) -> None:
        """End the actors."""
        for pack in self._packs.values():
            ray.kill(pack.actor)
        self._packs.clear()

    def _open(self) -> None:
        """Ask for one more pack."""
        cpus = max(1, self._resources.cpus)
        name = f"{self._prefix}-{self._opened}"
        made = ray.remote(concurrency_groups={"desk": 1})(Pack).options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=cpus,
            num_gpus=self._resources.gpus,
            max_concurrency=self.lanes_each + 1,
        )
        actor = made.remote(self._door, self._resources.slots, cpus)
        self._packs[self._opened] = PackActor(name, actor, actor.__ray_ready__.remote())
        self._opened += 1

    def _gone(self, index: int, error: Exception) -> None:
        """A pack was lost: ask for another, or end every search where that happened too often."""
        pack = self._packs.pop(index, None)
        if pack is None:
            return
        ray.kill(pack.actor)  # it may be cut off, and not dead
        self.last = {key: other for key, other in self.last.items() if other != index}
        if self._opened < (RETRIES + 1) * self._asked:
            self._open()
        elif not self._packs:
            found = str(error).strip().splitlines()[0]
            for hunt in self._hunts.values():
                hunt.fail(PermanentError("search", found, "its packs were lost more often than they may be"))

    def _desk(self, index: int | None, method: str, *arguments: Any) -> Any:
        """Call a method beside the training thread of a pack that was up. Raises PackLost where it no longer is."""
        if index not in self._packs:
            raise PackLost
        asked = getattr(self._packs[index].actor, method).options(concurrency_group="desk").remote(*arguments)
        while not ray.wait([asked], timeout=_CHECK_S)[0]:  # a machine that is cut off is missed only after a while
            for hunt in self._hunts.values():
                hunt.check()
            if all(hunt.over for hunt in self._hunts.values()):
                raise PackLost
        try:
            return ray.get(asked)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._gone(index, error)
            raise PackLost from error


def refuse_what_cannot_be(resources: Resources) -> None:
    """Raise CapacityError for packs that the machines of the cluster could never hold at once."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    packs, fit = max(1, resources.packs), resources.fit(machines)
    if packs > fit:
        asked = f"asks for {packs} packs of {max(1, resources.cpus)} CPU and {resources.gpus:g} GPU each"
        why = f"the {len(machines)} machines of the cluster hold {fit}"
        raise CapacityError("placement of search", asked, why, "Lower cpus, gpus or packs of search")
