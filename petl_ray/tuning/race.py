"""One search as a race of configurations over rungs, in plain Python: who is asked, who trains next, who goes on.

The race knows neither Ray nor clocks. It is told what was heard and says what is ready; the same seed and the same
hearings, in whatever order they arrive, give the same race under `decisions: rung`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from petl_ray.errors import CapacityError, PetlRayError, PlanError, TrainingError
from petl_ray.spec import Spec
from petl_ray.tuning.brackets import Brackets
from petl_ray.tuning.ledger import Copy
from petl_ray.tuning.pack import life_key
from petl_ray.tuning.population import chance_of, changeable, donors, explored
from petl_ray.tuning.recipe import Recipe, identity, reason
from petl_ray.tuning.rules import Standing, asha_keeps, better, median_keeps
from petl_ray.tuning.sampler import Overrides, open_sampler
from petl_ray.tuning.spec import SearchSpec

Phase = Literal["asked", "ready", "training", "waiting", "finished", "stopped", "rejected", "diverged"]
# What the table says of what a machine ended: its own words, with process ids and free bytes, would enter the digest.
_ONLY_HERE = {"memory": "no room on this machine", "fault": "its pass broke on this machine"}
Recorded = Callable[[int], "Overrides | None"]


@dataclass
class Candidate:
    """One configuration: `scores` by share of the horizon, in the order of the rungs, and its `standing` at the last.

    `parents` says at which shares it became a copy of which trial; `spec` and `overrides` are those of today's life.
    """

    search: str
    number: int
    overrides: Overrides
    spec: Spec
    phase: Phase
    scores: dict[float, float] = field(default_factory=dict)
    standing: Standing = field(default_factory=lambda: Standing(0.0))
    reason: str = ""
    told: bool = False
    bracket: int | None = None
    parents: dict[float, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The trial's name within a run of several searches."""
        return f"{self.search}/{self.number}"

    @property
    def life(self) -> int:
        """How often it has become a copy of another trial."""
        return len(self.parents)

    @property
    def key(self) -> str:
        """The name of what a pack trains: another one in every life, so that nothing of an earlier one is continued."""
        return life_key(self.name, self.life)

    @property
    def ended(self) -> bool:
        """Whether nothing more will be trained here."""
        return self.phase in ("finished", "stopped", "rejected", "diverged")

    @property
    def rung(self) -> int:
        """The index of the rung that it trains to next."""
        return len(self.scores)

    def row(self) -> dict[str, Any]:
        """The line of the trial table: what was decided, no times."""
        scores = {str(share): score for share, score in self.scores.items()}
        row = {"number": self.number, "overrides": self.overrides, "state": self.phase, "scores": scores}
        parents = {str(share): donor for share, donor in self.parents.items()}
        more = {"bracket": self.bracket, "parents": parents or None, "reason": self.reason or None}
        return row | {name: value for name, value in more.items() if value is not None}


class Race:
    """A search whose rungs are barriers: a generation is asked at once and decided together, in order of number.

    `recorded` gives the overrides that a number had in an earlier attempt at the same search; they stand.
    Raises PlanError where the recipe, its space or its grid make no sense.
    """

    barrier = True

    def __init__(self, spec: SearchSpec, recorded: Recorded, name: str = "") -> None:
        self.name = name
        self.spec, self.recipe = spec, Recipe(spec)
        self.candidates: list[Candidate] = []
        self.error: PetlRayError | None = None
        self._recorded = recorded
        self._sampler = open_sampler(spec, self.recipe.mode)
        self._names: set[str] = set()
        self._asks_left = 8 * spec.trials + 64  # a space smaller than the trials asked for comes to an end
        self._at_rung: defaultdict[tuple[int, int], list[Standing]] = defaultdict(list)  # by rung and bracket
        self._brackets = Brackets(len(spec.rungs), spec.reduction) if spec.scheduler == "hyperband" else None
        self.copies: list[Copy] = []  # what was decided and is yet to be done
        self._begun = False
        self._live: list[Candidate] = []
        self._settle()

    @property
    def over(self) -> bool:
        """Whether nothing is left to train or to ask."""
        return self.error is not None or not self._live

    def unweighed(self) -> list[Candidate]:
        """Configurations whose cost must be judged before they may train."""
        return [] if self.over else [candidate for candidate in self._live if candidate.phase == "asked"]

    def ready(self) -> list[Candidate]:
        """Configurations that may train to their next rung now, those furthest on first."""
        if self.over or (self.barrier and self.unweighed()):
            return []
        ready = [candidate for candidate in self._live if candidate.phase == "ready"]
        return sorted(ready, key=lambda candidate: (-candidate.rung, candidate.number))

    def start(self, number: int) -> None:
        """A ready configuration has been given a place to train."""
        self.candidates[number].phase = "training"
        self._begun = True

    def again(self, number: int) -> None:
        """A configuration lost its place before it was heard; it may train from its last rung once more."""
        if self.candidates[number].phase == "training":
            self.candidates[number].phase = "ready"

    def weighed(self, number: int, facts: Mapping[str, Any]) -> None:
        """What a configuration would cost: `trained_share` and `memory_bytes`, or `refused`, why it cannot be."""
        candidate = self.candidates[number]
        over = str(facts.get("refused", "")) or _over_limit(self.spec, facts)
        candidate.phase = "ready"
        if over:
            self._end(candidate, "rejected", over)
        self._settle()

    def heard(self, number: int, facts: Mapping[str, Any], keep: bool | None = None) -> None:
        """The facts of one rung: `score`, or `diverged`, or `refused`. `keep` is a decision that was made elsewhere."""
        candidate = self.candidates[number]
        if facts.get("refused"):
            self._end(candidate, "rejected", str(facts["refused"]), only_here=str(facts.get("only_here", "")))
        elif facts.get("diverged"):
            self._end(candidate, "diverged", str(facts.get("reason", "the loss is not finite")))
        else:
            candidate.standing = Standing.drawn(float(facts["score"]), self.spec.seed, candidate.rung, number)
            self._at_rung[candidate.rung, candidate.bracket or 0].append(candidate.standing)
            candidate.scores[self.spec.rungs[candidate.rung]] = candidate.standing.score
            candidate.phase = "waiting"
            self._hear(candidate, keep)
        self._settle()

    def fail(self, error: PetlRayError) -> None:
        """This search is over; the first error stands."""
        self.error = self.error or error

    def winner(self) -> Candidate:
        """The best score over the whole horizon; of equals the lowest number. Trial 0 is always among them."""
        last = self.spec.rungs[-1]
        best, *others = [candidate for candidate in self.candidates if candidate.phase == "finished"]
        for other in others:
            if better(self.recipe.mode, other.scores[last], best.scores[last]):
                best = other
        return best

    def best_score(self) -> float | None:
        """The best score heard so far at the furthest rung that was reached."""
        furthest = max((rung for rung, _ in self._at_rung), default=None)
        heard = [one.score for (rung, _), there in self._at_rung.items() if rung == furthest for one in there]
        return (max if self.recipe.mode == "max" else min)(heard, default=None)

    # --- what a generation does -------------------------------------------------------------------------------------

    def _hear(self, candidate: Candidate, keep: bool | None) -> None:
        """Nothing is decided before the whole generation stands at the rung."""

    def _settle(self) -> None:
        """Decide at a full barrier; replace what was rejected; ask the next generation when one is over."""
        while self.error is None and not self.unweighed():
            if self._refill():
                continue
            if any(candidate.phase in ("ready", "training") for candidate in self._live):
                return
            waiting = [candidate for candidate in self._live if candidate.phase == "waiting"]
            self._decide(waiting)
            if any(candidate.phase == "ready" for candidate in waiting):
                return
            self._tell(self._live)
            self._live, self._begun = self._ask(self._size), False
            if not self._live:
                return

    @property
    def _size(self) -> int:
        """How many configurations are asked at once."""
        return self.spec.generation

    def _refill(self) -> bool:
        """Ask again for what was rejected before anything of the generation has trained."""
        if self._begun:
            return False
        rejected = [candidate for candidate in self._live if candidate.phase == "rejected" and not candidate.told]
        self._tell(rejected)
        fresh = self._ask(len(rejected))
        self._live += fresh
        return bool(fresh)

    def _decide(self, candidates: Iterable[Candidate]) -> None:
        for candidate in candidates:
            if candidate.rung == len(self.spec.rungs):
                self._end(candidate, "finished")
            elif candidate.number == 0 or self._keeps(candidate):  # what tuning is worth needs the default's end
                candidate.phase = "ready"
            else:
                self._end(candidate, "stopped")

    def _keeps(self, candidate: Candidate) -> bool:
        """What the scheduler's rule says of a candidate at the rung that it has reached."""
        rung, bracket, mode = candidate.rung - 1, candidate.bracket or 0, self.recipe.mode
        standings = self._at_rung[rung, bracket]
        if self.spec.scheduler == "median":
            return median_keeps(mode, candidate.standing.score, [one.score for one in standings])
        if self.spec.scheduler in ("asha", "hyperband"):
            return rung < bracket or asha_keeps(mode, candidate.standing, standings, self.spec.reduction)
        return True

    def _end(self, candidate: Candidate, phase: Phase, why: str = "", *, only_here: str = "") -> None:
        candidate.phase, candidate.reason = phase, _ONLY_HERE.get(only_here, why)
        if candidate.number == 0 and phase in ("rejected", "diverged"):
            kind: type[PetlRayError] = PlanError if phase == "rejected" else TrainingError
            do = "Loosen the limits or change the recipe" if phase == "rejected" else "Lower its learning rate"
            if only_here:
                kind = CapacityError if only_here == "memory" else TrainingError
                do = "Run it again, on another machine if it comes to the same"
            self.fail(kind("search.recipe", f"trial 0, the recipe as it stands, {why or phase}", do=do))

    def _tell(self, candidates: Iterable[Candidate]) -> None:
        for candidate in candidates:
            if candidate.ended and not candidate.told:
                self._sampler.tell(candidate.number, candidate.scores, candidate.phase == "finished")
                candidate.told = True

    def _ask(self, count: int) -> list[Candidate]:
        """Up to `count` new configurations, fewer when the trials, the space or the patience are used up."""
        accepted = sum(candidate.phase != "rejected" for candidate in self.candidates)
        fresh: list[Candidate] = []
        while len(fresh) < min(count, self.spec.trials - accepted) and self._asks_left > 0:
            self._asks_left -= 1
            candidate = self._ask_one(len(self.candidates))
            if candidate is None:
                break
            if candidate.phase != "rejected":
                fresh.append(candidate)
        return fresh

    def _ask_one(self, number: int) -> Candidate | None:
        """The next configuration that differs from all before; None when there is none."""
        while self._asks_left > 0:
            self._asks_left -= 1
            overrides = self._overrides(number)
            if overrides is None:
                return None
            try:
                spec = self.recipe.apply(overrides)
            except ValidationError as error:
                candidate = Candidate(
                    self.name, number, overrides, self.recipe.default, "rejected", reason=reason(error)
                )
                self.candidates.append(candidate)
                self._tell([candidate])
                return candidate
            if identity(spec) not in self._names:
                self._names.add(identity(spec))
                weigh = self.spec.limits.trained_share is not None or self.spec.limits.memory_bytes is not None
                candidate = Candidate(self.name, number, overrides, spec, "asked" if weigh else "ready")
                candidate.bracket = self._brackets.of(number) if self._brackets else None
                self.candidates.append(candidate)
                return candidate
            self._sampler.forget(number)
        return None

    def _overrides(self, number: int) -> Overrides | None:
        if number == 0:
            self._sampler.replace(0, self.recipe.present(self.spec.space))
            return {}
        asked, recorded = self._sampler.ask(number), self._recorded(number)
        if recorded is not None and recorded != asked:
            self._sampler.replace(number, recorded)
            return recorded
        return asked


class AsyncRace(Race):
    """A search without barriers: `generation` configurations are under way, each is decided when it is heard.

    Tune's own rules say who goes on; hyperband, whose brackets Tune would draw by lot, is decided here.
    """

    barrier = False

    def _hear(self, candidate: Candidate, keep: bool | None) -> None:
        if keep is False and candidate.number > 0 and candidate.rung < len(self.spec.rungs):
            self._end(candidate, "stopped")
        else:
            self._decide([candidate])

    def _keeps(self, candidate: Candidate) -> bool:
        return self.spec.scheduler != "hyperband" or super()._keeps(candidate)

    def _settle(self) -> None:
        if self.error is None:
            self._tell(self._live)
            self._live = [candidate for candidate in self._live if not candidate.ended]
            self._live += self._ask(self.spec.generation - len(self._live))


class Population(Race):
    """A search in which nobody is stopped: all trials are asked at once, and at every rung but the last the worst become
    copies of the best and go on with other rates (see `petl_ray.tuning.population`).

    Raises PlanError where the space has nothing that may change while a trial trains.
    """

    def __init__(self, spec: SearchSpec, recorded: Recorded, name: str = "") -> None:
        super().__init__(spec, recorded, name)
        self._changeable = changeable(self.recipe, spec.space)

    @property
    def _size(self) -> int:
        return 0 if self.candidates else self.spec.trials

    def _decide(self, candidates: Iterable[Candidate]) -> None:
        candidates = list(candidates)
        super()._decide(candidates)
        if candidates and (rung := candidates[0].rung - 1) < len(self.spec.rungs) - 1:
            share = self.spec.rungs[rung]
            scores = {candidate.number: candidate.scores[share] for candidate in candidates}
            pairs = donors(self.recipe.mode, scores, self.spec.quantile, self.spec.seed, rung)
            for number, donor in pairs.items():
                self._become(self.candidates[number], self.candidates[donor], rung)

    def _become(self, candidate: Candidate, donor: Candidate, rung: int) -> None:
        """From here on `candidate` is `donor` in all but the rates that it explores."""
        share, chance = self.spec.rungs[rung], chance_of(self.spec.seed, rung, candidate.number)
        found = explored(self.recipe, donor.overrides, self._changeable, share, chance)
        candidate.overrides, candidate.spec = found
        candidate.parents[share] = donor.number
        self.copies.append(Copy(candidate.number, donor.number, rung))


def open_race(spec: SearchSpec, recorded: Recorded, name: str = "") -> Race:
    """The race that `spec.scheduler` and `spec.decisions` name."""
    if spec.scheduler == "pbt":
        return Population(spec, recorded, name)
    return (AsyncRace if spec.decisions == "async" else Race)(spec, recorded, name)


def _over_limit(spec: SearchSpec, facts: Mapping[str, Any]) -> str:
    """Which limit these costs exceed, in words; empty if none."""
    share, memory = spec.limits.trained_share, spec.limits.memory_bytes
    if share is not None and float(facts["trained_share"]) > share:
        return f"trains {float(facts['trained_share']):.4%} of all parameters, over limits.trained_share {share:.4%}"
    if memory is not None and float(facts["memory_bytes"]) > memory:
        return f"needs {int(facts['memory_bytes'])} bytes a slot, over limits.memory_bytes {memory}"
    return ""
