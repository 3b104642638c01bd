"""How the trials of a search are laid out: so many slots in every pack, or each trial alone, and why. No torch, no Ray.

Nothing of this bears identity: on a CPU a trial comes to the same bits in any company. It is decided from what the
session says of its base and of the largest trials that the space allows, and from what earlier runs measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError

from petl_ray.bank.memory import Calibration, Machine, SlotPlan, Takes, calibrate, plan_slots, told_bytes
from petl_ray.errors import CapacityError
from petl_ray.spec import Spec, with_overrides
from petl_ray.tuning.domains import Choice, Domain
from petl_ray.tuning.spec import SearchSpec
from petl_ray.verb import Resources

LANE_BYTES = 120 * 10**6  # of a trial's own process: what is not shared of a Ray worker without torch, measured
# More slots of a pack than this gain less than their trials' processes cost, 1.6 CPU-seconds each: two packs took 127
# CPU-seconds for 64 short trials with four slots each and 123 with eight, and the eight more trials' processes took 14.
MOST_TRIALS = {"cpu": 4, "cuda": 64}
_VARIANTS = 16  # of one search: each costs a look at the model's modules


@dataclass(frozen=True)
class Demand:
    """What the trials of one search take in a session on `machine`: its recipe, and the largest trials at the most.

    Searches of equal `session` share one base in a process; `shared` says whether its slots share passes.
    """

    session: str
    base: str
    device: str
    base_bytes: float
    recipe: Takes
    widest: Takes
    machine: Machine
    shared: bool

    @classmethod
    def told(cls, figures: Sequence[Mapping[str, Any]], limit: int | None = None) -> Demand:
        """From what a pack says of one search's orders, the recipe's first (see `Pack.footprints`); a trial over its
        `limit` of memory is never trained."""
        recipe, known = figures[0], [one for one in figures if "session" in one]
        within = [one for one in known if limit is None or one["memory_bytes"] <= limit]
        return cls(
            session=recipe["session"],
            base=recipe["base"],
            device=recipe["device"],
            base_bytes=recipe["base_bytes"],
            recipe=Takes.told(recipe),
            widest=largest(Takes.told(one) for one in (recipe, *within)),
            machine=Machine(recipe["device"], recipe["machine_bytes"], recipe["free_bytes"]),
            shared=recipe["shared"],
        )

    def were_it_empty(self) -> Demand:
        """The same on the same machine, while nobody else takes anything of it."""
        return replace(self, machine=replace(self.machine, free_bytes=None))


@dataclass(frozen=True)
class Layout:
    """Packs of so many slots (`packed`), or of one with one trial at a time (`solo`); figures in bytes of one pack.

    `lanes` are the trials' own processes for it: one a slot and one whose order waits, but no more than are under way.
    """

    engine: Literal["packed", "solo"]
    slots: int
    why: str
    base_bytes: int = 0
    slot_bytes: int = 0
    pass_bytes: int = 0
    machine_bytes: int = 0
    lanes: int = 1
    calibration: str = Calibration().told

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.engine}: {self.why}"


def lay_out(
    engine: Literal["auto", "packed", "solo"],
    resources: Resources,
    beside: int,
    demands: Sequence[Demand],
    measured: Sequence[Mapping[str, Any]] = (),
    under_way: int = 1 << 30,
) -> Layout:
    """The layout for `demands` where `beside` packs share a machine; `measured` is what `StepContext.remembered` told.

    The packs have no more slots than hold the trials that are `under_way` at once. Raises CapacityError where a pack has
    no room for one slot of the recipe, trained a row at a time, and where several sessions do not fit side by side.
    """
    busy = most_each(under_way, resources.packs)
    most = 1 if engine == "solo" else min(resources.slots, busy)
    if not demands:
        return Layout("solo" if engine == "solo" else "packed", most, "as placed", lanes=min(most + 1, busy))
    first = demands[0]
    if resources.slots_by_memory:
        most = min(most, MOST_TRIALS[first.device])
    calibration = calibrate(measured, first.base, first.device)
    free = [demand.machine.free_bytes for demand in demands if demand.machine.free_bytes is not None]
    machine = Machine(first.device, min(demand.machine.bytes for demand in demands), min(free, default=None))
    share = machine.share(resources.gpus, beside)
    base = sum({demand.session: demand.base_bytes for demand in demands}.values())
    recipe = _together((demand.session, demand.recipe.calibrated(calibration)) for demand in demands)
    widest = _together((demand.session, demand.widest.calibrated(calibration)) for demand in demands)
    alone = len({demand.session for demand in demands}) == 1
    least = max(demand.recipe.least_bytes for demand in demands) if alone else None

    def lanes_bytes(slots: int) -> float:
        """Of the trials' own processes; beside a GPU they take nothing of it."""
        return min(slots + 1, busy) * LANE_BYTES if first.device == "cpu" else 0.0

    try:
        plan = plan_slots(base, widest.slot_bytes, share, most, widest.pass_bytes, None, lanes_bytes)
    except CapacityError:  # the largest trials may fail, each alone; without room for the recipe there is no search
        plan = plan_slots(base, recipe.slot_bytes, share, 1, recipe.pass_bytes, least)
        if (wide := widest.slot_bytes + widest.pass_bytes) > recipe.slot_bytes + recipe.pass_bytes:
            plan = SlotPlan(1, f"{plan.why}; the largest trial takes {told_bytes(wide)}")
    if busy < resources.slots and plan.slots == busy and engine != "solo":
        plan = SlotPlan(plan.slots, f"{plan.why}; no more than {under_way} trials are under way at once")
    chosen, slots, why = _choose(engine, resources, all(demand.shared for demand in demands), plan, most)
    figures = (int(base), int(widest.slot_bytes), int(widest.pass_bytes), int(share))
    return Layout(chosen, slots, why, *figures, lanes=min(slots + 1, busy), calibration=calibration.told)


def trials_under_way(specs: Iterable[SearchSpec]) -> int:
    """The most trials of these searches that are under way at once: of each a generation, or all of a population."""
    return sum(spec.trials if spec.scheduler == "pbt" else min(spec.trials, spec.generation) for spec in specs)


def most_each(under_way: int, packs: int) -> int:
    """The most of them that one of so many packs has."""
    return max(1, -(-under_way // max(1, packs)))


def _choose(
    engine: str, resources: Resources, shared: bool, plan: SlotPlan, most: int
) -> tuple[Literal["packed", "solo"], int, str]:
    if engine == "solo":
        return "solo", 1, f"as asked; {plan.why}"
    if engine == "packed" and not resources.slots_by_memory:
        return "packed", most, f"{most} slots as placed, but {plan.why}" if plan.slots < most else plan.why
    if engine == "auto" and not shared:
        return "solo", 1, "slots over this base share no passes here, so that a second one gains nothing"
    if engine == "auto" and plan.slots == 1:
        return "solo", 1, plan.why
    return "packed", plan.slots, plan.why


def largest(found: Iterable[Takes]) -> Takes:
    """As much as any of them takes, of everything."""
    return Takes(*(max(figures) for figures in zip(*map(astuple, found), strict=True)))


def _together(found: Iterable[tuple[str, Takes]]) -> Takes:
    """One slot of every session, since each has as many as the others; passes follow one another."""
    sessions: dict[str, list[Takes]] = {}
    for session, takes in found:
        sessions.setdefault(session, []).append(takes)
    each = [largest(mine) for mine in sessions.values()]
    kept = sum(one.kept_bytes for one in each)
    return Takes(
        slot_bytes=sum(one.slot_bytes for one in each),
        pass_bytes=max(one.pass_bytes - one.kept_bytes for one in each) + kept,
        state_bytes=sum(one.state_bytes for one in each),
        row_bytes=max(one.row_bytes for one in each),
        kept_bytes=kept,
    )


def widest(spec: SearchSpec) -> list[Spec]:
    """The recipe of a search first, then recipes as large as its space allows.

    Every number at its highest at once, and with that every other choice in turn, as far as they go together.
    """
    recipe = spec.template()
    high: dict[str, Any] = {}
    for path, most in highest(spec):
        if _applied(recipe, {**high, path: most}) is not None:
            high[path] = most
    chosen = choices(spec)
    tries = [high, *({**high, path: value} for path, value in chosen), *({path: value} for path, value in chosen)]
    found = [one for overrides in tries if (one := _applied(recipe, overrides)) is not None]
    return [recipe, *found[:_VARIANTS]]


def highest(spec: SearchSpec) -> list[tuple[str, float]]:
    """The highest of all numbers that a field may have, by its path."""
    found = [(path, _highest(domain)) for path, domain in sorted(spec.space.items())]
    return [(path, most) for path, most in found if most is not None]


def choices(spec: SearchSpec) -> list[tuple[str, Any]]:
    """Every choice of the space that is not between numbers, by the path of its field."""
    domains = [(path, domain) for path, domain in sorted(spec.space.items()) if isinstance(domain, Choice)]
    return [(path, value) for path, domain in domains if _highest(domain) is None for value in domain.values]


def _applied(recipe: Spec, overrides: Mapping[str, Any]) -> Spec | None:
    try:
        return with_overrides(recipe, overrides)
    except ValidationError:
        return None


def _highest(domain: Domain) -> float | None:
    """The highest number of a domain; None where it has other values."""
    if not isinstance(domain, Choice):
        return domain.high
    numbers = [value for value in domain.values if isinstance(value, int | float) and not isinstance(value, bool)]
    return max(numbers) if len(numbers) == len(domain.values) else None
