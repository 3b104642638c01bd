"""Which searches are trained together in the packs, and how their trials are laid out, from what a pack said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from petl_ray.errors import CapacityError, PetlRayError, TemporaryError
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.layout import Demand, Layout, lay_out, trials_under_way
from petl_ray.verb import Resources

_AGAIN_S = 30.0  # until memory that others hold is asked for again


@dataclass(frozen=True)
class Turns:
    """The searches whose turn it is, how their trials are laid out, and whose turn comes after."""

    layout: Layout
    now: list[Hunt]
    later: list[list[Hunt]]


def plan_turns(
    of: Sequence[tuple[Hunt, int]], figures: Sequence[Mapping[str, Any]], resources: Resources, beside: int
) -> Turns:
    """What fits is laid out together, what does not session by session, and last what could not be opened yet; a search that
    would not fit if it were alone fails alone. `figures` are of so many orders of each search, `beside` packs share one
    machine."""
    first, measured = of[0][0], list[Mapping[str, Any]]()
    with suppress(PetlRayError):  # it only makes the estimate better
        measured = first.step.remembered("memory")

    def fit(demands: Sequence[Demand], *under_way: int) -> Layout:
        return lay_out(first.spec.engine, resources, beside, demands, measured, *under_way)

    def together(turn: Sequence[tuple[Hunt, list[Demand]]]) -> Layout:
        return fit([one for _, mine in turn for one in mine], trials_under_way(hunt.spec for hunt, _ in turn))

    going, unknown = _fitting(of, figures, fit)
    others: dict[str, list[Hunt]] = {}
    for hunt in unknown:
        others.setdefault(hunt.session, []).append(hunt)
    try:
        return Turns(together(going), [hunt for hunt, _ in going], list(others.values()))
    except CapacityError:
        turns: dict[str, list[tuple[Hunt, list[Demand]]]] = {}
        for hunt, demands in going:
            turns.setdefault(demands[0].session if demands else "", []).append((hunt, demands))
        now, *rest = turns.values()
        later = [[hunt for hunt, _ in turn] for turn in rest]
        return Turns(together(now), [hunt for hunt, _ in now], [*later, *others.values()])


def _fitting(
    of: Sequence[tuple[Hunt, int]], figures: Sequence[Mapping[str, Any]], fit: Callable[[list[Demand]], Layout]
) -> tuple[list[tuple[Hunt, list[Demand]]], list[Hunt]]:
    """The searches that would fit if each were alone, with what they take; and those of which the pack, which could not
    open their base, does not know it. The others fail."""
    going: list[tuple[Hunt, list[Demand]]] = []
    unknown: list[Hunt] = []
    begin = 0
    for hunt, count in of:
        mine, begin = figures[begin : begin + count], begin + count
        if hunt.over:
            continue
        if "unopened" in mine[0]:
            unknown.append(hunt)
            continue
        demands = [Demand.told(mine, hunt.spec.limits.memory_bytes)] if "session" in mine[0] else []
        try:
            fit(demands)
            going.append((hunt, demands))
        except CapacityError as error:
            hunt.fail(_refusal(error, demands, fit))
        except PetlRayError as error:
            hunt.fail(error)
    return going, unknown


def _refusal(error: CapacityError, demands: list[Demand], fit: Callable[[list[Demand]], Layout]) -> PetlRayError:
    """`error`, which stands, or where the machine would have room if it were empty one that asks to try again."""
    try:
        fit([one.were_it_empty() for one in demands])
    except CapacityError:
        return error
    why, do = "others hold memory of that machine now", "It is tried again; end what holds it to begin sooner"
    return TemporaryError(error.what, error.found, why, do, delay_s=_AGAIN_S)
