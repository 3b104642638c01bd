"""The packs of a search as Ray actors, which come up when the cluster has room for them and may be lost again."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import ray

from petl_ray.bank.memory import Machine, Takes
from petl_ray.errors import CapacityError, PermanentError, PetlRayError
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.layout import Demand, Layout, largest, lay_out, most_each, trials_under_way
from petl_ray.tuning.ledger import Files
from petl_ray.tuning.pack import Order, Pack
from petl_ray.verb import Resources

NAMESPACE = "petl-ray"
RETRIES = 3  # of a trial, and of every pack on the average
_START_S = 5.0  # for the first pack of a search, where the cluster has room
_CHECK_S = 1.0
_FIGURES_S = 2.0  # for what a pack took, when all is over


class PackLost(Exception):
    """A pack went away while it was asked something, or nobody waits for its answer any more."""


@dataclass
class PackActor:
    """One pack: `ready` is kept when its actor is up, which may be never; `holds` names the searches whose rows it has."""

    name: str
    actor: Any
    ready: Any
    up: bool = False
    laid_out: bool = False
    holds: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Figures:
    """What trials take, asked of one pack: the first orders of each search are its own, so many of each."""

    index: int
    orders: list[Order]
    of: list[tuple[Hunt, int]]
    answer: Any


class Packs:
    """The pack actors: asked for when first needed, used as they come up, replaced where one is lost.

    The first that is up loads the base and says what trials take beside it; then all are laid out alike. Searches whose
    sessions have no room beside one another have their turns one after the other.

    Nothing here waits for an actor that is not up, since its cores may be held by others for ever. A search goes on
    with the packs there are; those that come later join.
    """

    def __init__(self, hunts: list[Hunt], resources: Resources, door: str) -> None:
        self._hunts = {hunt.name: hunt for hunt in hunts}
        self._turn, self._later = hunts, list[list[Hunt]]()
        self._resources, self._door = resources, door
        self._prefix = f"petl-ray-pack-{hunts[0].step.name[:12]}-{uuid.uuid4().hex[:8]}"
        self._asked = max(1, resources.packs)
        self._packs: dict[int, PackActor] = {}  # no index is given twice
        self._opened = 0
        self._told: int | None = None
        self._rows: dict[str, Any] = {}
        self._layout: Layout | None = None
        self._figures: Figures | None = None  # promised by a pack
        self.under_way: dict[str, int] = {}  # trial key -> index of the pack that trains it now
        self.last: dict[str, int] = {}  # trial key -> index of the pack that trained it last
        self._orphaned: dict[str, int] = {}  # trial key -> index of the pack that has its order, for nobody

    @property
    def count(self) -> int:
        """How many packs are up."""
        return sum(pack.up for pack in self._packs.values())

    @property
    def lanes_each(self) -> int:
        """Orders that one pack is given at a time: one a slot, and one that waits for the next free slot."""
        busy = most_each(trials_under_way(hunt.spec for hunt in self._turn), max(1, self.count))
        if self._layout is not None:
            return min(self._layout.slots + 1, busy)
        return min(2 if self._resources.slots_by_memory else self._resources.slots + 1, busy)

    def defers(self, search: str) -> bool:
        """Whether a search waits for its turn."""
        return any(hunt.name == search for turn in self._later for hunt in turn)

    def look(self, patience_s: float = 0.0) -> None:
        """See which packs came up, waiting for the first of them no longer than `patience_s`."""
        coming, fresh = {pack.ready: index for index, pack in self._packs.items() if not pack.up}, []
        if patience_s:
            ray.wait(list(coming), timeout=patience_s)
        for ready in ray.wait(list(coming), num_returns=len(coming), timeout=0)[0] if coming else ():
            try:
                ray.get(ready)
                self._packs[coming[ready]].up = True
                fresh.append(coming[ready])
            except ray.exceptions.RayError as error:
                self._gone(coming[ready], error)
        if self._opened and self.count != self._told:
            self._told = self.count
            for hunt in self._hunts.values():
                if not hunt.over:
                    hunt.placed(self._told, self._asked)
        if self._later and all(hunt.over for hunt in self._turn):
            self._next_turn()
        if self._layout is None and self.count:
            self._lay_out()
        if self._figures is not None:  # the others load their base meanwhile
            for index in set(fresh) & set(self._packs) - {self._figures.index}:
                self._packs[index].actor.footprints.remote(self._figures.orders[:1])

    def choose(self, key: str) -> int | None:
        """The pack with the fewest orders; of equals the one that trained the trial last, and before all the one that
        has its order from a process that died. None while none is ready."""
        if not self._opened:
            for _ in range(self._asked):
                self._open()
            self.look(_START_S)
        while self._figures is not None and not (self.under_way or all(hunt.over for hunt in self._hunts.values())):
            ray.wait([self._figures.answer], timeout=_CHECK_S)  # Tune, without a trial yet, asks again in a second
            for hunt in self._hunts.values():
                hunt.check()
            self.look()
        if self._layout is None:
            return None
        if key in self._orphaned:
            return self._orphaned[key]
        busy = list(self.under_way.values())
        up = [index for index, pack in self._packs.items() if pack.up]
        return min(up, key=lambda index: (busy.count(index), self.last.get(key) != index, index), default=None)

    def prepare(self, order: Order, index: int) -> str | None:
        """Bring what `order` needs to pack `index`; returns the actor's name, None if it was lost."""
        pack, hunt = self._packs[index], self._hunts[order.search]
        checkpoint = hunt.ledger.checkpoint(order.number) if order.rung else None
        try:
            if not pack.laid_out and self._layout is not None:
                self._desk(index, "allow", self._layout.slots, self._layout.engine == "solo")
                pack.laid_out = True
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
        self._orphaned.pop(order.key, None)
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

    def lost(self, key: str, rung: int) -> None:
        """A trial broke: see whether its pack is still there and has its order; if not, bring its checkpoint again. A pack
        that broke as a whole makes way for another process."""
        index = self.under_way.pop(key, None)
        self.last.pop(key, None)
        try:
            if self._desk(index, "has", key, rung):
                self._orphaned[key] = cast("int", index)
        except PackLost:
            pass
        except ray.exceptions.RayTaskError as error:
            self._gone(cast("int", index), error)

    def close(self) -> None:
        """End the actors, after hearing what their slots took."""
        self._hear_figures()
        for pack in self._packs.values():
            ray.kill(pack.actor)
        self._packs.clear()

    def _hear_figures(self) -> None:
        """Tell the searches whose turn it is what their slots took."""
        if all(hunt.race.error is not None for hunt in self._turn):
            return
        asked = [
            pack.actor.memory.options(concurrency_group="desk").remote() for pack in self._packs.values() if pack.up
        ]
        for answer in ray.wait(asked, num_returns=len(asked), timeout=_FIGURES_S)[0] if asked else ():
            with suppress(ray.exceptions.RayError):  # it was lost, and nothing is owed any more
                if memory := ray.get(answer):
                    for hunt in self._turn:
                        hunt.measured(memory)

    def _next_turn(self) -> None:
        """The next searches, in packs without a session."""
        self._hear_figures()
        self._turn, self._layout, self._figures = self._later.pop(0), None, None
        for pack in self._packs.values():
            pack.laid_out = False
        self._leave_sessions()

    def _leave_sessions(self) -> None:
        for pack in self._packs.values():
            if pack.up:
                pack.actor.leave_sessions.options(concurrency_group="desk").remote()

    def _lay_out(self) -> None:
        """Ask a pack for its figures, and when they have come decide how trials are laid out in all of them."""
        hunts = [hunt for hunt in self._turn if not hunt.over]
        if self._figures is None and hunts:
            index = next(index for index, pack in self._packs.items() if pack.up)
            sizes = [hunt.sizes() for hunt in hunts]
            orders = [order for mine in sizes for order in mine]
            of = [(hunt, len(mine)) for hunt, mine in zip(hunts, sizes, strict=True)]
            self._figures = Figures(index, orders, of, self._packs[index].actor.footprints.remote(orders))
        if self._figures is None or not ray.wait([self._figures.answer], timeout=0)[0]:
            return
        asked, self._figures = self._figures, None
        try:
            self._decide(asked.of, ray.get(asked.answer))
        except ray.exceptions.RayError as error:
            self._gone(asked.index, error)

    def _decide(self, of: list[tuple[Hunt, int]], figures: list[dict[str, Any]]) -> None:
        """Lay out what fits, session by session where it does not fit together; a search that would not fit if it were
        alone fails alone."""
        engine, beside, measured = of[0][0].spec.engine, _beside(self._resources), []
        with suppress(PetlRayError):  # it only makes the estimate better
            measured = of[0][0].step.remembered("memory")
        going: list[tuple[Hunt, list[Demand]]] = []
        for hunt, count in of:
            mine, figures = figures[:count], figures[count:]
            demands = [] if "refused" in mine[0] else [_demand(hunt, mine)]
            try:
                lay_out(engine, self._resources, beside, demands, measured)
                going.append((hunt, demands))
            except PetlRayError as error:
                hunt.fail(error)

        def together(turn: list[tuple[Hunt, list[Demand]]]) -> Layout:
            demands = [demand for _, mine in turn for demand in mine]
            trials = trials_under_way(hunt.spec for hunt, _ in turn)
            return lay_out(engine, self._resources, beside, demands, measured, trials)

        try:
            self._layout = together(going)
        except CapacityError:
            turns: dict[str, list[tuple[Hunt, list[Demand]]]] = {}
            for hunt, demands in going:
                turns.setdefault(demands[0].session if demands else "", []).append((hunt, demands))
            going, *later = turns.values()
            self._later = [[hunt for hunt, _ in turn] for turn in later]
            self._turn = [hunt for hunt, _ in going]
            self._layout = together(going)
        for hunt, _ in going:
            hunt.laid_out(self._layout, self._asked)
        if self._later or len(going) < len(of):
            self._leave_sessions()  # they may hold a base whose turn it is not

    def _open(self) -> None:
        """Ask for one more pack."""
        cpus = max(1, self._resources.cpus)
        name = f"{self._prefix}-{self._opened}"
        made = ray.remote(concurrency_groups={"desk": 1})(Pack).options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=cpus,
            num_gpus=self._resources.gpus,
            max_concurrency=self._resources.slots + 2,
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
        for trials in (self.last, self._orphaned):
            for key in [key for key, other in trials.items() if other == index]:
                del trials[key]
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


def _demand(hunt: Hunt, figures: list[dict[str, Any]]) -> Demand:
    """What one search takes, the recipe first; a trial over its limit of memory is never trained."""
    limit = hunt.spec.limits.memory_bytes
    known = [one for one in figures if "refused" not in one]
    within = [one for one in known if limit is None or one["memory_bytes"] <= limit]
    recipe = figures[0]
    return Demand(
        session=recipe["session"],
        base=recipe["base"],
        device=recipe["device"],
        base_bytes=recipe["base_bytes"],
        recipe=Takes.told(recipe),
        widest=largest(Takes.told(one) for one in (recipe, *within)),
        machine=Machine(recipe["device"], recipe["machine_bytes"], recipe["free_bytes"]),
        shared=recipe["shared"],
    )


def _beside(resources: Resources) -> int:
    """The most packs that share one machine."""
    return resources.beside(machine["Resources"] for machine in ray.nodes() if machine["Alive"])


def refuse_what_cannot_be(resources: Resources) -> None:
    """Raise CapacityError for packs that the machines of the cluster could never hold at once."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    packs, fit = max(1, resources.packs), resources.fit(machines)
    if packs > fit:
        asked = f"asks for {packs} packs of {max(1, resources.cpus)} CPU and {resources.gpus:g} GPU each"
        why = f"the {len(machines)} machines of the cluster hold {fit}"
        raise CapacityError("placement of search", asked, why, "Lower cpus, gpus or packs of search")
