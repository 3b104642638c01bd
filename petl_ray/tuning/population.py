"""Population based training (Jaderberg et al. 2017): who copies whom at a rung, and what is tried from there on.

Every draw follows from the search's seed, the rung and the trial's number, so that a search that is resumed draws the
same. Only what a recipe's `phases` can change is explored; everything else of a donor is copied as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, get_args

from pydantic import ValidationError

from petl_ray.errors import PlanError
from petl_ray.fingerprint import sha256_of
from petl_ray.spec import Json, Spec
from petl_ray.tuning.domains import Domain, LogUniform, listed
from petl_ray.tuning.recipe import Recipe
from petl_ray.tuning.rules import Mode, better
from petl_ray.tuning.sampler import Overrides

PHASES, START = "phases", "start"
RESAMPLED = 0.25  # of the values are drawn anew from their domain; the others are moved
DOWN, UP = 0.8, 1.2


def changeable(recipe: Recipe, space: Mapping[str, Domain]) -> dict[str, Domain]:
    """The part of `space` that may change while a trial trains: the fields of the recipe's phases.

    Raises PlanError where nothing of it may.
    """
    field = type(recipe.default).model_fields.get(PHASES)
    phase: Any = get_args(field.annotation)[0] if field is not None else None
    names = [name for name in phase.model_fields if name != START] if phase is not None else []
    found = {path: domain for path, domain in space.items() if path in names}
    if not found:
        why = f"pbt explores what may change while a trial trains: {', '.join(names) or 'nothing of this recipe'}"
        raise PlanError(
            "search.space", f"got {', '.join(space)}", why, "Search one of these, or choose another scheduler"
        )
    return found


def chance_of(seed: int, rung: int, number: int) -> Random:
    """The draws of trial `number` at `rung`."""
    return Random(int(sha256_of(["pbt", seed, rung, number]), 16))


def donors(mode: Mode, scores: Mapping[int, float], quantile: float, seed: int, rung: int) -> dict[int, int]:
    """Who copies whom, by number: each of the worst `quantile` of `scores` one of the best, if that is better.

    At least one trial counts as best and one as worst. Trial 0 is the recipe as it stands and never copies.
    """
    ranked = sorted(scores, key=lambda number: (-scores[number] if mode == "max" else scores[number], number))
    count = min(max(1, int(len(ranked) * quantile)), len(ranked) // 2)
    pairs = {}
    for number in sorted(ranked[len(ranked) - count :]):
        donor = ranked[:count][int(chance_of(seed, rung, number).random() * count)]
        if number != 0 and better(mode, scores[donor], scores[number]):
            pairs[number] = donor
    return pairs


def explored(
    recipe: Recipe, overrides: Overrides, space: Mapping[str, Domain], start: float, chance: Random
) -> tuple[Overrides, Spec]:
    """`overrides` with a phase from `start` on in which every field of `space` is moved or drawn anew, and its spec.

    A field that has no number, or whose change the recipe refuses beside the others, stays as it is.
    """
    spec = recipe.apply(overrides)
    phases = spec.model_dump(mode="json", include={PHASES}, exclude_none=True)[PHASES]
    by_start: dict[float, dict[str, Json]] = {phase[START]: phase for phase in phases}
    changes: dict[str, Json] = {}
    changed = overrides
    for path in sorted(space):
        now = getattr(spec, path)
        for begun in (phase for phase in phases if phase[START] <= start):
            now = begun.get(path, now)
        value = _moved(space[path], now, chance)
        if value is None or value == now:
            continue
        tried = {**by_start.get(start, {START: start}), **changes, path: value}
        longer: list[Json] = [phase for _, phase in sorted({**by_start, start: tried}.items())]
        try:
            spec = recipe.apply({**overrides, PHASES: longer})
        except ValidationError:
            continue
        changes[path] = value
        changed = {**overrides, PHASES: longer}
    return changed, spec


def _moved(domain: Domain, now: Any, chance: Random) -> float | int | None:
    """Another value of `domain`: `now` a little down or up, or any; None where `now` is no number."""
    up, anew, place = chance.random() < 0.5, chance.random() < RESAMPLED, chance.random()
    if isinstance(now, bool) or not isinstance(now, int | float):
        return None
    steps = (UP, DOWN) if up else (DOWN, UP)
    countable = listed(domain)
    if countable is not None:
        numbers = sorted(value for value in countable if isinstance(value, int | float) and not isinstance(value, bool))
        return _moved_in_list(numbers, now, None if anew else steps, place)
    low, high = domain.low, domain.high  # type: ignore[union-attr]  # what cannot be counted is a range
    moved = [] if anew else [_short(now * factor, low, high) for factor in steps]
    drawn = low * (high / low) ** place if isinstance(domain, LogUniform) else low + (high - low) * place
    return next((value for value in moved if value != now), _short(drawn, low, high))


def _moved_in_list(
    numbers: list[int | float], now: float, steps: tuple[float, float] | None, place: float
) -> float | int | None:
    """The listed number nearest to `now` times the first step that leads to any, on that step's side of `now`."""
    for factor in steps or ():
        side = [value for value in numbers if (value > now if factor > 1 else value < now)]
        if side:
            return min(side, key=lambda value: abs(value - now * factor))
    return numbers[int(place * len(numbers))] if numbers else None


def _short(value: float, low: float, high: float) -> float:
    """`value` with six digits, as a table shows it, within [low, high]."""
    return min(high, max(low, float(f"{value:.6g}")))
