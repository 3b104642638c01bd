"""How the trials of a search are laid out: so many slots in every pack, or each trial alone, and why. No torch, no Ray.

Nothing of this bears identity: on a CPU a trial comes to the same bits in any company. It is decided from what the
session says of its base and of the largest trials that the space allows, and from what earlier runs measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import ValidationError

from petl_ray.bank.memory import MOST_SLOTS, Calibration, Machine, SlotPlan, calibrate, plan_slots, told_bytes
from petl_ray.errors import CapacityError
from petl_ray.spec import Spec, with_overrides
from petl_ray.tuning.domains import Choice, Domain
from petl_ray.tuning.spec import SearchSpec
from petl_ray.verb import Resources

_VARIANTS = 16  # of one search: each costs a look at the model's modules


@dataclass(frozen=True)
class Demand:
    """What the trials of one search take in a session: `slot_bytes` each and `pass_bytes` once for the recipe, and
    `widest_bytes` and `widest_pass_bytes` for the largest trials.

    Searches of equal `session` share one base in a process; `shared` says whether its slots share passes.
    """

    session: str
    base: str
    device: str
    base_bytes: float
    slot_bytes: float
    pass_bytes: float
    widest_bytes: float
    widest_pass_bytes: float
    machine_bytes: float
    shared: bool


@dataclass(frozen=True)
class Layout:
    """Packs of so many slots (`packed`), or of one with one trial at a time (`solo`); figures in bytes of one pack."""

    engine: Literal["packed", "solo"]
    slots: int
    why: str
    base_bytes: int = 0
    slot_bytes: int = 0
    pass_bytes: int = 0
    machine_bytes: int = 0
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
) -> Layout:
    """The layout for `demands` where `beside` packs share a machine; `measured` is what `StepContext.remembered` told.

    Raises CapacityError where a pack has no room for one slot of a recipe.
    """
    if not demands:
        return Layout("solo" if engine == "solo" else "packed", 1 if engine == "solo" else resources.slots, "as placed")
    first = demands[0]
    calibration = calibrate(measured, first.base, first.device)
    machine = min(demand.machine_bytes for demand in demands)
    share = Machine(first.device, int(machine)).share(resources.gpus, beside)
    base = sum({demand.session: demand.base_bytes for demand in demands}.values())
    slot = _together(demands, "slot_bytes") * calibration.ratio
    once = max(demand.pass_bytes for demand in demands) * calibration.ratio
    widest = max(slot, _together(demands, "widest_bytes") * calibration.ratio)
    widest_once = max(once, max(demand.widest_pass_bytes for demand in demands) * calibration.ratio)
    most = min(resources.slots, MOST_SLOTS[first.device]) if resources.slots_by_memory else resources.slots
    try:
        plan = plan_slots(base, widest, share, 1 if engine == "solo" else most, widest_once)
    except CapacityError:  # the largest trials may fail, each alone; without room for the recipe there is no search
        largest = f"; the largest trial takes {told_bytes(widest + widest_once)}"
        plan = SlotPlan(1, plan_slots(base, slot, share, 1, once).why + largest)
    chosen, slots, why = _choose(engine, resources, all(demand.shared for demand in demands), plan)
    return Layout(chosen, slots, why, int(base), int(widest), int(widest_once), int(share), calibration.told)


def _choose(
    engine: str, resources: Resources, shared: bool, plan: SlotPlan
) -> tuple[Literal["packed", "solo"], int, str]:
    if engine == "solo":
        return "solo", 1, f"as asked; {plan.why}"
    if engine == "packed" and not resources.slots_by_memory:
        less = plan.slots < resources.slots
        return "packed", resources.slots, f"{resources.slots} slots as placed, but {plan.why}" if less else plan.why
    if engine == "auto" and not shared:
        return "solo", 1, "slots over this base share no passes here, so that a second one gains nothing"
    if engine == "auto" and plan.slots == 1:
        return "solo", 1, plan.why
    return "packed", plan.slots, plan.why


def _together(demands: Sequence[Demand], what: str) -> float:
    """One slot of every session: each has as many as the others."""
    largest: dict[str, float] = {}
    for demand in demands:
        largest[demand.session] = max(largest.get(demand.session, 0.0), float(getattr(demand, what)))
    return sum(largest.values())


def widest(spec: SearchSpec) -> list[Spec]:
    """The recipe of a search first, then recipes as large as its space allows.

    Every number at its highest at once, and with that every other choice in turn, as far as they go together.
    """
    recipe = spec.template()
    high: dict[str, Any] = {}
    for path, domain in sorted(spec.space.items()):
        if (most := _highest(domain)) is not None and _applied(recipe, {**high, path: most}) is not None:
            high[path] = most
    tries: list[dict[str, Any]] = [high]
    for path, domain in sorted(spec.space.items()):
        if isinstance(domain, Choice) and _highest(domain) is None:
            tries += [{**high, path: value} for value in domain.values] + [{path: value} for value in domain.values]
    found = [one for overrides in tries if (one := _applied(recipe, overrides)) is not None]
    return [recipe, *found[:_VARIANTS]]


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
