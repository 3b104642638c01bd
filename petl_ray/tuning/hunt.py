"""One question of a packed search: its race, its ledger, and the artifact that comes of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Literal, cast

from petl_ray.artifact import Dataset, Trial
from petl_ray.errors import PetlRayError
from petl_ray.spec import Json
from petl_ray.tuning.layout import Layout, widest
from petl_ray.tuning.ledger import Files, Ledger, read_files
from petl_ray.tuning.pack import Order
from petl_ray.tuning.race import Candidate, open_race
from petl_ray.tuning.ranking import TABLE, TIMES
from petl_ray.tuning.sessions import shared_name
from petl_ray.tuning.spec import SearchSpec
from petl_ray.verb import Question, StepContext

_CHECK_EVERY_S = 1.0


class Hunt:
    """What Ray Tune's side asks and tells of one search; whatever a step raises ends this search alone.

    Raises PetlRayError at once where the question makes no sense.
    """

    def __init__(self, name: str, question: Question, step: StepContext) -> None:
        self.name, self.step = name, step
        self.spec = cast("SearchSpec", question.spec)
        self.dataset = cast("Dataset", question.inputs[0])
        self.ledger = Ledger(step)
        try:
            self.race = open_race(self.spec, self.ledger.overrides, name)
        except BaseException:
            self.close()
            raise
        self.asynchronous = self.spec.decisions == "async"
        self._started_s, self._checked_s = time.monotonic(), 0.0
        self._timings: list[dict[str, Json]] = []
        self._told: dict[str, Any] = {}  # how the trials were laid out, and what they took
        self._tell_what_is_found()

    @property
    def over(self) -> bool:
        """Whether this search asks for nothing more."""
        return self.race.over

    @property
    def session(self) -> str:
        """Names what all its trials share: the base they are trained over."""
        return shared_name(self.race.recipe.default)

    def going(self) -> set[str]:
        """What the trials that may train on are called in a pack."""
        return set() if self.over else {one.key for one in self.race.candidates if not one.ended}

    def rows(self) -> Files:
        """The files a session trains and validates on; never the test rows."""
        return read_files(self.step.fetch(self.dataset), without=("test.jsonl",))

    def check(self) -> None:
        """Ask the step, about once a second, whether this work should stop."""
        if time.monotonic() - self._checked_s >= _CHECK_EVERY_S:
            self._checked_s = time.monotonic()
            self._guarded(self.step.check)

    def placed(self, up: int, asked: int) -> None:
        """So many of the packs that the placement asks for are up."""
        self._guarded(lambda: self.step.report("search.packs", up=up, asked=asked))

    def sizes(self) -> list[Order]:
        """Orders for the recipe and for the largest trials of the space, to plan packs with; never to be trained."""
        recipes = (spec.model_dump(mode="json") for spec in widest(self.spec))
        return [
            Order(self.name, 0, 0, 1.0, recipe, self.spec.recipe_spec, len(self.dataset.labels)) for recipe in recipes
        ]

    def laid_out(self, layout: Layout, packs: int) -> None:
        """How the trials are laid out was decided."""
        self._told["engine"] = {"packs": packs, **layout.told()}
        told = {"engine": layout.engine, "slots": layout.slots, "why": str(layout)}
        self._guarded(lambda: self.step.report("search.engine", calibration=layout.calibration, **told))

    def measured(self, memory: Mapping[str, Any]) -> None:
        """What a pack took at its peak; the one that held the most counts."""
        if memory["estimated_bytes"] > self._told.get("memory", {}).get("estimated_bytes", 0):
            self._told["memory"] = dict(memory)

    def unweighed(self) -> list[Order]:
        """Orders of the trials whose cost must be asked of a pack; what is recorded is judged here."""
        for candidate in self.race.unweighed():
            if (cost := self.ledger.cost(candidate.number)) is not None:
                self.race.weighed(candidate.number, cost)
        return [self.order(candidate) for candidate in self.race.unweighed()]

    def weighed(self, orders: list[Order], costs: list[dict[str, Any]]) -> None:
        """The costs of `orders` are known."""
        for order, cost in zip(orders, costs, strict=True):
            self._guarded(lambda number=order.number, facts=cost: self._weighed(number, facts))

    def order(self, candidate: Candidate) -> Order:
        """What a trial asks of its pack next."""
        recipe = candidate.spec.model_dump(mode="json")
        target = self.spec.rungs[candidate.rung]
        door, labels = self.spec.recipe_spec, len(self.dataset.labels)
        return Order(self.name, candidate.number, candidate.rung, target, recipe, door, labels, life=candidate.life)

    def started(self, candidate: Candidate) -> None:
        """A trial has been given a place."""
        self.race.start(candidate.number)
        if candidate.rung == 0:
            self._guarded(lambda: self.ledger.asked(candidate.number, candidate.overrides))

    def heard(self, candidate: Candidate, facts: Mapping[str, Any], files: Files | None, keep: bool | None) -> None:
        """One rung was trained (or replayed): remember it, then decide."""
        self._guarded(lambda: self._heard(candidate, facts, files, keep))

    def fail(self, error: PetlRayError) -> None:
        """End this search; the others go on."""
        self.race.fail(error)

    def outcome(self) -> Trial | PetlRayError:
        """The winner with the table of all trials, or why there is none."""
        try:
            return self.race.error or self._trial()
        except PetlRayError as error:
            return error
        finally:
            self.close()

    def close(self) -> None:
        """Remove the local copies."""
        self.ledger.close()

    def _guarded(self, act: Any) -> None:
        try:
            act()
        except PetlRayError as error:  # a lost claim, a cancelled run, a full store: this search's own end
            self.race.fail(error)

    def _tell_what_is_found(self) -> None:
        """Report what an earlier attempt has recorded, if there was one."""
        recorded, trials = self.ledger.recorded()
        if recorded:
            self._guarded(lambda: self.step.report("search.resumed", recorded=recorded, trials=trials))

    def _weighed(self, number: int, facts: Mapping[str, Any]) -> None:
        self.ledger.asked(number, self.race.candidates[number].overrides)
        self.ledger.weighed(number, facts)
        self.race.weighed(number, facts)

    def _heard(self, candidate: Candidate, facts: Mapping[str, Any], files: Files | None, keep: bool | None) -> None:
        rung = candidate.rung
        replayed = rung in self.ledger.rungs(candidate.number)
        if not (replayed or self._passing(candidate, facts)):
            self.ledger.reached(candidate.number, rung, facts, files)
        self._timings.append({"number": candidate.number, "rung": rung, "replayed": replayed, **_traced(facts)})
        self.race.heard(candidate.number, facts, keep)
        self.ledger.copied(self.race.copies)
        self.race.copies.clear()
        for other in self.race.candidates:
            if other.ended:
                self.ledger.forget(other.number)
        known = {"score": facts.get("score"), "best": self.race.best_score(), "replayed": replayed}
        self.step.report("search.rung", trial=candidate.number, rung=rung, rungs=len(self.spec.rungs), **known)

    def _passing(self, candidate: Candidate, facts: Mapping[str, Any]) -> bool:
        """Whether a later attempt may fare better, so that nothing is recorded.

        In a population whom trials copy hangs on who was there; but without trial 0 there is no search at all.
        """
        return bool(facts.get("only_here")) and (self.spec.scheduler != "pbt" or candidate.number == 0)

    def _trial(self) -> Trial:
        race, out = self.race, self.step.out
        winner, last = race.winner(), self.spec.rungs[-1]
        _write_lines(out / TABLE, [candidate.row() for candidate in race.candidates])
        _write_lines(out / TIMES, self._timings)
        trained = [timing for timing in self._timings if not timing["replayed"]]
        states = [candidate.phase for candidate in race.candidates]
        return Trial(
            files=self.step.keep(TABLE),
            traces=self.step.keep(TIMES),
            overrides=winner.overrides,
            number=winner.number,
            metric=race.recipe.metric,
            mode=cast('Literal["max", "min"]', race.recipe.mode),
            score=winner.scores[last],
            default_score=race.candidates[0].scores[last],
            trials=sum(state != "rejected" for state in states),
            about={
                "seconds": round(time.monotonic() - self._started_s, 3),
                "training_seconds": round(sum(float(cast("float", t.get("seconds", 0))) for t in trained), 3),
                "trained_rungs": len(trained),
                "replayed_rungs": len(self._timings) - len(trained),
                "states": {state: states.count(state) for state in sorted(set(states))},
                **self._told,
            },
        )


def _traced(facts: Mapping[str, Any]) -> dict[str, Json]:
    """What hangs on the machine and stands beside the table of trials: times, and why a trial ended there alone."""
    times = {name: facts[name] for name in ("seconds", "steps") if name in facts}
    return times | ({"reason": facts["refused"]} if facts.get("only_here") else {})


def _write_lines(path: Any, rows: list[dict[str, Any]]) -> None:
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
