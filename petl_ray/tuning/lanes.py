"""Who has a lane: which trial Ray Tune starts, continues, holds or ends, so that no pack idles and no process dies.

Plain Python around what Tune offers its scheduler (`Controller`) and what packs can do (`PackRoom`). A lane is a
trial's process; there are a few a pack: one order trains while the next waits at the door. Starting a process costs
over a second of CPU, and Tune ends one whenever a trial stops or pauses with nobody waiting. So a trial that must
wait, or has ended, keeps its lane (NOOP) until `choose` hands the lane to another: it frees one and names the next
trial in the same call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from petl_ray.errors import PermanentError, PetlRayError
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.ledger import Files
from petl_ray.tuning.pack import Order
from petl_ray.tuning.race import Candidate

CONTINUE, NOOP, STOP = "CONTINUE", "NOOP", "STOP"
PENDING, PAUSED = "PENDING", "PAUSED"
_LANES_PER_PACK = 2
_REPLAY = -1  # under way, but on no pack


class TrialOfTune(Protocol):
    """What is used of `ray.tune.experiment.Trial`."""

    trial_id: str
    status: str
    error_file: str | None

    def set_config(self, config: dict[str, Any]) -> None: ...


class Controller(Protocol):
    """What is used of Tune's controller."""

    def get_trials(self) -> Sequence[TrialOfTune]: ...

    def pause_trial(self, trial: TrialOfTune, should_checkpoint: bool = True) -> None: ...

    def stop_trial(self, trial: TrialOfTune) -> None: ...


class PackRoom(Protocol):
    """What lanes need of packs; `under_way` names the pack of every trial that has an order out."""

    count: int
    under_way: dict[str, int]

    def choose(self, key: str) -> int: ...

    def prepare(self, order: Order, index: int) -> str: ...

    def files(self, key: str, rung: int) -> Files | None: ...

    def weigh(self, orders: list[Order]) -> Any: ...

    def costs(self, reference: Any) -> list[dict[str, Any]] | None: ...

    def lost(self, key: str) -> None: ...

    def close(self) -> None: ...


Stopper = Callable[[Controller, TrialOfTune, float, float], bool]


class Lanes:
    """The lanes of one Tune run over several hunts; `keeps` are Tune's own rules for the asynchronous ones, by name."""

    def __init__(self, hunts: list[Hunt], packs: PackRoom, keeps: dict[str, Stopper], tries: int) -> None:
        self._hunts, self._packs = hunts, packs
        self._lanes = _LANES_PER_PACK * packs.count
        self._errands: dict[str, tuple[Hunt, Candidate]] = {}  # by Tune's trial id
        self._ids: dict[str, str] = {}  # trial key -> Tune's trial id
        self._waiting: list[TrialOfTune] = []  # trials that hold a lane and train nothing
        self._starting: set[str] = set()  # trials whose process is coming up
        self._handed: str | None = None  # a new trial that is to take the lane of one that waits
        self._failures: dict[str, str] = {}
        self._costs: dict[str, tuple[list[Order], Any]] = {}
        self._keeps, self._tries = keeps, tries
        self._turn = 0

    @property
    def over(self) -> bool:
        """Whether every hunt has ended."""
        return all(hunt.over for hunt in self._hunts)

    # --- what the Asker needs ---------------------------------------------------------------------------------------

    def new_trial(self, trial_id: str) -> dict[str, str] | None:
        """The errand of a trial that Tune does not know yet, if one should run now."""
        self._weigh()
        chosen = self._next()
        if chosen is None or chosen[1].key in self._ids or not self._lane_free():
            return None
        fresh = len(self._packs.under_way) + len(self._waiting) < self._lanes
        if not fresh and (self._starting or self._handed):
            return None  # one at a time: Tune would start, or end, a process for any other
        errand = self._errand(*chosen)
        if errand is not None:
            self._errands[trial_id], self._ids[chosen[1].key] = chosen, trial_id
            if fresh:
                self._starting.add(trial_id)
            else:
                self._handed = trial_id
        return errand

    def given_up(self, trial_id: str) -> None:
        """A trial failed more often than it may: its search has failed."""
        hunt, candidate = self._errands[trial_id]
        found = self._failures.get(trial_id, "its process was lost")
        hunt.fail(PermanentError(f"search, trial {candidate.number}", found, f"it failed {self._tries} times"))

    # --- what Tune asks of a scheduler ------------------------------------------------------------------------------

    def choose(self, controller: Controller) -> TrialOfTune | None:
        """The trial that should train next, with a lane freed for it; at most one lane changes hands in a call."""
        for hunt in self._hunts:
            hunt.check()
        trials = {trial.trial_id: trial for trial in controller.get_trials()}
        self._starting = {name for name in self._starting if trials[name].status == PENDING}
        self._tidy(controller, trials)
        if self.over or self._starting:
            return None
        if self._handed is not None:
            handed, self._handed = self._handed, None
            self._hand_over(controller)
            return trials[handed]
        chosen = self._next()
        if chosen is None or chosen[1].key not in self._ids or not self._lane_free():
            return None
        trial, errand = trials[self._ids[chosen[1].key]], self._errand(*chosen)
        if errand is None:
            return None
        if trial in self._waiting:
            self._waiting.remove(trial)
            controller.pause_trial(trial, should_checkpoint=False)
        else:
            self._hand_over(controller)
        trial.set_config(errand)
        return trial

    def search_of(self, trial: TrialOfTune) -> str:
        """The name of the hunt that a trial belongs to."""
        return self._errands[trial.trial_id][0].name

    def added(self, trial: TrialOfTune) -> None:
        """Tune has taken a trial in, or takes one in again that failed."""
        hunt, candidate = self._errands[trial.trial_id]
        if trial.trial_id in self._failures:  # Tune tries a failed trial again, in a new process
            self._starting.add(trial.trial_id)
            errand = self._errand(hunt, candidate) if candidate.phase == "ready" and not hunt.over else None
            if errand is not None:
                trial.set_config(errand)

    def failed(self, trial: TrialOfTune) -> None:
        """A trial's process or its pack broke; what it was training must be trained again."""
        hunt, candidate = self._errands[trial.trial_id]
        log = Path(trial.error_file or "/dev/null")
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() else []
        self._failures[trial.trial_id] = lines[-1] if lines else "its process was lost"
        self._packs.lost(candidate.key)
        hunt.race.again(candidate.number)

    def heard(self, controller: Controller, trial: TrialOfTune, result: dict[str, Any]) -> str:
        """Remember a rung, let the race decide, and go straight on where this very trial is the next to train."""
        hunt, candidate = self._errands[trial.trial_id]
        index = self._packs.under_way.pop(candidate.key, _REPLAY)
        if not hunt.over:
            self._hear(controller, trial, json.loads(result["facts"]))
            if self._next() == (hunt, candidate) and self._goes_straight_on(hunt, candidate, index):
                return CONTINUE
        self._waiting.append(trial)
        return NOOP

    # --- how -------------------------------------------------------------------------------------------------------

    def _lane_free(self) -> bool:
        return len(self._packs.under_way) < self._lanes

    def _next(self) -> tuple[Hunt, Candidate] | None:
        """What should train next: of the searches with the least under way, the one whose turn it is."""
        count = len(self._hunts)
        places = [(self._turn + offset) % count for offset in range(count)]
        able = [(place, self._hunts[place].race.ready()) for place in places]
        able = [(place, ready) for place, ready in able if ready]
        if not able:
            return None
        place, ready = min(able, key=lambda entry: self._load(self._hunts[entry[0]]))
        return self._hunts[place], ready[0]

    def _load(self, hunt: Hunt) -> int:
        return sum(key.startswith(f"{hunt.name}/") for key in self._packs.under_way)

    def _errand(self, hunt: Hunt, candidate: Candidate) -> dict[str, str] | None:
        """Bring everything to a pack and write down what the trial's process must know; None if the hunt fails here."""
        order, recorded = hunt.order(candidate), hunt.ledger.rungs(candidate.number)
        hunt.started(candidate)
        self._turn = (self._hunts.index(hunt) + 1) % len(self._hunts)
        pack, index = "", _REPLAY
        if candidate.rung not in recorded and not hunt.over:
            index = self._packs.choose(candidate.key)
            try:
                pack = self._packs.prepare(order, index)
            except PetlRayError as error:  # rows that cannot be read, a pack that cannot be brought back
                hunt.fail(error)
        if hunt.over:
            return None
        self._packs.under_way[candidate.key] = index
        errand = {"order": order.plain(), "targets": hunt.spec.rungs, "recorded": recorded, "pack": pack}
        return {"errand": json.dumps(errand)}

    def _goes_straight_on(self, hunt: Hunt, candidate: Candidate, index: int) -> bool:
        """Start the next rung in the same process, if the errand it carries still holds."""
        recorded = candidate.rung in hunt.ledger.rungs(candidate.number)
        if not recorded and (index == _REPLAY or self._packs.choose(candidate.key) != index):
            return False
        hunt.started(candidate)
        self._packs.under_way[candidate.key] = index
        return True

    def _hear(self, controller: Controller, trial: TrialOfTune, facts: dict[str, Any]) -> None:
        hunt, candidate = self._errands[trial.trial_id]
        target, failed = hunt.spec.rungs[candidate.rung], bool(facts.get("diverged") or facts.get("refused"))
        keep, files = None, None
        if hunt.name in self._keeps and not failed and candidate.number > 0:
            keep = self._keeps[hunt.name](controller, trial, target, float(facts["score"]))
        replayed = candidate.rung in hunt.ledger.rungs(candidate.number)
        if not replayed and not failed and target < 1.0 and keep is not False:
            files = self._packs.files(candidate.key, candidate.rung)
        hunt.heard(candidate, facts, files, keep)

    def _hand_over(self, controller: Controller) -> None:
        """Free the lane of one trial that waits, if the lanes are all taken."""
        if self._waiting and len(self._packs.under_way) + len(self._waiting) >= self._lanes:
            trial = self._waiting.pop(0)
            hunt, candidate = self._errands[trial.trial_id]
            if candidate.ended or hunt.over:
                controller.stop_trial(trial)
            else:
                controller.pause_trial(trial, should_checkpoint=False)

    def _tidy(self, controller: Controller, trials: dict[str, TrialOfTune]) -> None:
        """Tell Tune of trials that ended while they were paused; when all is over, of every trial."""
        if self.over:
            self._packs.close()  # nobody waits for an order that is still under way
        for name, trial in trials.items():
            hunt, candidate = self._errands[name]
            paused = trial.status == PAUSED and (candidate.ended or hunt.over)
            if self.over or paused:
                controller.stop_trial(trial)

    def _weigh(self) -> None:
        """Ask packs what new configurations would cost, and hear what they said."""
        for hunt in self._hunts:
            if hunt.name in self._costs:
                orders, reference = self._costs[hunt.name]
                try:
                    costs = self._packs.costs(reference)
                except PetlRayError as error:
                    hunt.fail(error)
                    continue
                if costs is None:
                    continue
                del self._costs[hunt.name]
                hunt.weighed(orders, costs)
            if orders := hunt.unweighed():
                self._costs[hunt.name] = (orders, self._packs.weigh(orders))
