"""The packs of a search as Ray actors, which come up when the cluster has room for them and may be lost again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import ray

from petl_ray.errors import CapacityError, PermanentError, PetlRayError, PlanError
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.layout import Layout, most_each, trials_under_way
from petl_ray.tuning.ledger import Files
from petl_ray.tuning.pack import Order, Pack, PackBroken
from petl_ray.tuning.packs.losses import Losses, last_line, search_of
from petl_ray.tuning.sessions import NoSession
from petl_ray.tuning.turns import plan_turns
from petl_ray.verb import Resources

NAMESPACE = "petl-ray"
RETRIES = 3  # of a trial, and of every pack on the average
_START_S = 5.0  # for the first pack of a search, where the cluster has room
_CHECK_S = 1.0
_FIGURES_S = 2.0  # for what a pack took, when all is over
_CLOSE_S = 1.0  # for a turn that is under way when a pack is closed


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
        self._losses = Losses(hunts)
        self._held: dict[str, set[int]] = {}  # trial key -> packs that have been given its orders
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
        """Whether a search waits for its turn, or for a pack that may have its base."""
        if any(hunt.name == search for turn in self._later for hunt in turn):
            return True
        return self._losses.waits(search, [index for index, pack in self._packs.items() if pack.up])

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
        self._put_away_the_useless()
        if self._later and all(hunt.over for hunt in self._turn):
            self._next_turn()
        if self._layout is None and self.count:
            self._lay_out()
        if self._figures is not None:  # the others load their base meanwhile
            for index in set(fresh) & set(self._packs) - {self._figures.index}:
                self._packs[index].actor.footprints.remote(self._figures.orders[:1])

    def choose(self, key: str) -> int | None:
        """The pack with the fewest orders; of equals the one that trained the trial last, and before all the one that
        has its order from a process that died. One in which it failed only if there is no other; none that lacks its
        base. None while none is ready."""
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
        busy, last, losses = list(self.under_way.values()), self.last.get(key), self._losses
        up = [index for index, pack in self._packs.items() if pack.up and losses.can(index, search_of(key))]
        return min(up, key=lambda one: (losses.has_failed(one, key), busy.count(one), last != one, one), default=None)

    def prepare(self, order: Order, index: int) -> str | None:
        """Bring what `order` needs to pack `index`; returns the actor's name, None if it was lost.

        Raises CapacityError where the cluster's object store has no room for the rows, and whatever reading them raises.
        """
        pack, hunt = self._packs[index], self._hunts[order.search]
        checkpoint = hunt.ledger.checkpoint(order.number) if order.rung else None
        try:
            if not pack.laid_out and self._layout is not None:
                self._desk(index, "allow", self._layout.slots, self._layout.engine == "solo")
                pack.laid_out = True
            if order.search not in pack.holds:
                if order.search not in self._rows:
                    self._rows[order.search] = _shared(hunt.rows())
                self._desk(index, "put_data", order.search, self._rows[order.search])
                pack.holds.add(order.search)
            if checkpoint is not None and self.last.get(order.key) != index:
                self._desk(index, "put_checkpoint", order.key, *checkpoint)
        except PackLost:
            return None
        self.last[order.key] = index
        self._held.setdefault(order.key, set()).add(index)
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
        return None if index is None else (index, self._packs[index].actor.weigh.remote(orders), orders[0].search)

    def costs(self, promise: Any) -> list[dict[str, Any]] | None:
        """What was promised: None while it is not there, empty if the pack was lost.

        Raises PermanentError where the session cannot say.
        """
        index, answer, search = promise
        if not ray.wait([answer], timeout=0)[0]:
            return None
        try:
            return cast("list[dict[str, Any]]", ray.get(answer))
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, NoSession):
                raise PermanentError("search.limits", last_line(error), "no cost is known") from error
            self._lacks(index, search, error.cause)
            return []
        except ray.exceptions.RayError as error:
            self._gone(index, error)
            return []

    def lost(self, key: str, rung: int) -> bool:
        """A trial broke: see whether its pack is still there and has its order; if not, bring its checkpoint again. A pack
        that broke as a whole makes way for another process. True where it could not even open the trial's base."""
        index = self.under_way.pop(key, -1)
        self.last.pop(key, None)
        try:
            if self._desk(index, "has", key, rung):
                self._orphaned[key] = index
            else:
                self._losses.failed(index, key)
        except PackLost:
            return index in self._losses.put_away
        except NoSession as error:
            self._lacks(index, search_of(key), error)
            return True
        except (PackBroken, PetlRayError) as error:
            self._gone(index, error)
        return False

    def keep(self, search: str, going: set[str]) -> None:
        """Of a search only the trials of these keys may train on: packs forget the others, with their checkpoints."""
        for key in [key for key in self._held if search_of(key) == search and key not in going]:
            for index in self._held.pop(key) & self._packs.keys():
                self._packs[index].actor.forget.options(concurrency_group="desk").remote(key)

    def close(self) -> None:
        """End the actors, after hearing what their slots took."""
        self._hear_figures()
        _end(list(self._packs.values()))
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
            figures = ray.get(asked.answer)
        except ray.exceptions.RayError as error:
            self._gone(asked.index, error)
            return
        for order, told in zip(asked.orders, figures, strict=True):
            if "unopened" in told:
                self._lacks(asked.index, order.search, told["unopened"])
        if asked.index in self._packs:  # another one is asked otherwise
            self._decide(asked.of, figures)

    def _decide(self, of: list[tuple[Hunt, int]], figures: list[dict[str, Any]]) -> None:
        """Lay out the searches whose turn it is now; those that the pack could say nothing of have theirs later."""
        turns = plan_turns(of, figures, self._resources, _beside(self._resources))
        self._layout, self._turn, self._later = turns.layout, turns.now, [*turns.later, *self._later]
        for hunt in self._turn:
            hunt.laid_out(self._layout, self._asked)
        if self._later or len(self._turn) < len(of):
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

    def _lacks(self, index: int, search: str, error: NoSession) -> None:
        """A pack could not open the base of a search: it trains others if it can, or makes way for another process."""
        self._losses.lacks(index, search, error)
        self._put_away_the_useless()
        self._end_the_stranded(error)

    def _put_away_the_useless(self) -> None:
        going = [hunt.name for hunt in self._turn if not hunt.over]
        for index, error in self._losses.useless(list(self._packs), going).items():
            self._losses.put_away.add(index)
            self._gone(index, error)

    def _gone(self, index: int, error: Exception) -> None:
        """A pack was lost: ask for another, unless that happened too often."""
        pack = self._packs.pop(index, None)
        if pack is None:
            return
        _end([pack])  # it may be cut off, and not dead
        for trials in (self.last, self._orphaned):
            for key in [key for key, other in trials.items() if other == index]:
                del trials[key]
        question = isinstance(error, NoSession) and isinstance(error.reason, PlanError)  # which no process answers
        if self._opened < (RETRIES + 1) * self._asked and not question:
            self._open()
        self._end_the_stranded(error)

    def _end_the_stranded(self, error: Exception) -> None:
        """End every search that no pack is left for, nor will be; `error` was the last that happened to one."""
        more = bool(self._packs) and self._opened < (RETRIES + 1) * self._asked  # where others are done with one
        for name, hunt in self._hunts.items():
            if hunt.over or any(self._losses.can(index, name) for index in self._packs):
                continue
            if not more or self._losses.asks_wrongly(name):
                hunt.fail(self._losses.end(name, error))

    def _desk(self, index: int | None, method: str, *arguments: Any) -> Any:
        """Call a method beside the training thread of a pack that was up, whose own errors are raised as they are.

        Raises PackLost where it no longer is, or cannot use its machine's disk.
        """
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
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PetlRayError | PackBroken):
                raise error.cause from None
            if not isinstance(error.cause, OSError):
                raise PermanentError(f"a pack's {method}", last_line(error), "it failed beside all training") from error
            self._gone(index, error.cause)
            raise PackLost from error
        except ray.exceptions.RayError as error:
            self._gone(index, error)
            raise PackLost from error


def _end(packs: Sequence[PackActor]) -> None:
    """Let packs remove what they have laid down, those that answer at once; then end them."""
    asked = [pack.actor.close.options(concurrency_group="desk").remote(_CLOSE_S) for pack in packs if pack.up]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=2 * _CLOSE_S)
    for pack in packs:
        ray.kill(pack.actor)


def _shared(rows: Files) -> Any:
    """Rows in the cluster's object store."""
    try:
        return ray.put(rows)
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        found = f"no room for {sum(map(len, rows.values()))} bytes of rows"
        do = "Give Ray a larger object store, or run less beside this"
        raise CapacityError("the cluster's object store", found, last_line(error)[:200], do) from error


def _beside(resources: Resources) -> int:
    """The most packs that share one machine."""
    return resources.beside(machine["Resources"] for machine in ray.nodes() if machine["Alive"])
