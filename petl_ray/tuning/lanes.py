"""Who has a lane: which trial Ray Tune starts, continues, holds or ends, so that no pack idles and no process dies.

Plain Python around what Tune offers its scheduler (`Controller`) and what packs can do (`PackRoom`). A lane is a
trial's process; a pack has one for every slot, and one more whose order waits at its door. Starting a process costs
over a second of CPU, and Tune ends one whenever a trial stops or pauses with nobody waiting. So a trial that must
wait, or has ended, keeps its lane (NOOP) until `choose` hands the lane to another: it frees one and names the next
trial in the same call.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from petl_ray.errors import PermanentError, PetlRayError
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.ledger import Files
from petl_ray.tuning.pack import Order
from petl_ray.tuning.race import Candidate

CONTINUE, NOOP, STOP = "CONTINUE", "NOOP", "STOP"
PENDING, PAUSED, RUNNING = "PENDING", "PAUSED", "RUNNING"
_REPLAY = -1  # under way, but on no pack
_NOTHING = {"errand": "null"}  # for a process that Tune starts before there is something to do


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
    """What lanes need of packs, which come up when the cluster has room for them and may be lost again.

    `count` says how many are up, `under_way` names the pack of every trial that has an order out. Where packs are lost
    more often than they may be, every hunt fails.
    """

    under_way: dict[str, int]

    @property
    def count(self) -> int: ...

    @property
    def lanes_each(self) -> int:
        """Orders that one pack is given at a time."""

    def defers(self, search: str) -> bool:
        """Whether a search, by name, waits until others have ended whose bases have no room beside its own, or for a pack
        that may open its base."""

    def look(self) -> None:
        """See which packs came up."""

    def choose(self, key: str) -> int | None:
        """The pack that should train a trial; None while none is up. The first call asks for the packs."""

    def prepare(self, order: Order, index: int) -> str | None:
        """Bring what an order needs to a pack; its name, or None if it was lost."""

    def files(self, key: str, rung: int) -> Files | None:
        """The checkpoint of a trial at `rung`; None if the pack that trained it was lost."""

    def weigh(self, orders: list[Order]) -> Any:
        """A promise of what orders would cost; None while no pack is up."""

    def costs(self, promise: Any) -> list[dict[str, Any]] | None:
        """What was promised; None while it is not there, empty if the pack was lost."""

    def lost(self, key: str, rung: int) -> bool:
        """The process or the pack of a trial broke while it trained to `rung`; whether the pack could not even open its
        base, which no trial is to blame for."""

    def keep(self, search: str, going: set[str]) -> None:
        """Of a search only the trials of these keys may train on."""

    def close(self) -> None:
        """End the packs."""


Stopper = Callable[[Controller, TrialOfTune, float, float], bool]


class Lanes:
    """The lanes of one Tune run over several hunts; `keeps` are Tune's own rules for the asynchronous ones, by name."""

    def __init__(self, hunts: list[Hunt], packs: PackRoom, keeps: dict[str, Stopper], tries: int) -> None:
        self._hunts, self._packs = hunts, packs
        self._errands: dict[str, tuple[Hunt, Candidate]] = {}  # by Tune's trial id
        self._ids: dict[str, str] = {}  # trial name -> Tune's trial id
        self._waiting: list[TrialOfTune] = []  # trials that hold a lane and train nothing
        self._starting: set[str] = set()  # trials whose process is coming up
        self._handed: str | None = None  # a new trial that is to take the lane of one that waits
        self._failures: dict[str, str] = {}  # the last one, by Tune's trial id
        self._failed: Counter[str] = Counter()  # by trial name
        self._costs: dict[str, tuple[list[Order], Any]] = {}
        self._keeps, self._tries = keeps, tries
        self._turn = 0

    @property
    def over(self) -> bool:
        """Whether every hunt has ended."""
        return all(hunt.over for hunt in self._hunts)

    def look(self) -> None:
        """Hear who wants to stop, and see which packs came up."""
        for hunt in self._hunts:
            hunt.check()
        self._packs.look()

    # --- what the Asker needs ---------------------------------------------------------------------------------------

    def new_trial(self, trial_id: str) -> dict[str, str] | None:
        """The errand of a trial that Tune does not know yet, if one should run now."""
        self.look()  # while there is no trial at all, Tune asks only here
        self._weigh()
        chosen = self._next()
        if chosen is None or chosen[1].name in self._ids or not self._lane_free():
            return None
        fresh = self._taken < self._lanes
        if not fresh and (self._starting or self._handed):
            return None  # one at a time: Tune would start, or end, a process for any other
        errand = self._errand(*chosen)
        if errand is not None:
            self._errands[trial_id], self._ids[chosen[1].name] = chosen, trial_id
            if fresh:
                self._starting.add(trial_id)
            else:
                self._handed = trial_id
        return errand

    def given_up(self, trial_id: str) -> None:
        """Tune tries no more. Its own count is hasty where a process died idle, so ours decides: a new trial, or the
        end of the search."""
        hunt, candidate = self._errands[trial_id]
        if self._failed[candidate.name] < self._tries:
            self._ids.pop(candidate.name, None)
            return
        found = self._failures[trial_id]
        hunt.fail(PermanentError(f"search, trial {candidate.number}", found, f"it failed {self._tries} times"))

    # --- what Tune asks of a scheduler ------------------------------------------------------------------------------

    def choose(self, controller: Controller) -> TrialOfTune | None:
        """The trial that should train next, with a lane freed for it; at most one lane changes hands in a call."""
        self.look()
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
        if chosen is None or chosen[1].name not in self._ids or not self._lane_free():
            return None
        trial = trials[self._ids[chosen[1].name]]
        if trial.status == RUNNING and trial not in self._waiting:  # it has not yet said that it had nothing to do
            return None
        errand = self._errand(*chosen)
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
            trial.set_config(errand or _NOTHING)

    def failed(self, trial: TrialOfTune) -> None:
        """A trial's process or its pack broke; what it was training must be trained again."""
        hunt, candidate = self._errands[trial.trial_id]
        log = Path(trial.error_file or "/dev/null")
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() else []
        self._failures[trial.trial_id] = lines[-1] if lines else "its process was lost"
        if trial in self._waiting:
            self._waiting.remove(trial)
        if not self._packs.lost(candidate.key, candidate.rung):
            self._failed[candidate.name] += 1
        hunt.race.again(candidate.number)

    def heard(self, controller: Controller, trial: TrialOfTune, result: dict[str, Any]) -> str:
        """Remember a rung, let the race decide, and go straight on where this very trial is the next to train."""
        hunt, candidate = self._errands[trial.trial_id]
        life, index = candidate.life, self._packs.under_way.pop(candidate.key, _REPLAY)
        facts = json.loads(result["facts"])
        if facts is not None and not hunt.over:
            heard = self._hear(controller, trial, facts)
            same = heard and candidate.life == life  # in another life its errand is another
            if same and self._next() == (hunt, candidate) and self._goes_straight_on(hunt, candidate, index):
                return CONTINUE
        self._waiting.append(trial)
        return NOOP

    # --- how -------------------------------------------------------------------------------------------------------

    @property
    def _lanes(self) -> int:
        return self._packs.lanes_each * max(1, self._packs.count)  # what is recorded needs lanes, but no pack

    @property
    def _taken(self) -> int:
        return len(self._packs.under_way) + len(self._waiting)

    def _lane_free(self) -> bool:
        return len(self._packs.under_way) < self._lanes

    def _next(self) -> tuple[Hunt, Candidate] | None:
        """What should train next: of the searches with the least under way, the one whose turn it is."""
        count = len(self._hunts)
        places = [(self._turn + offset) % count for offset in range(count)]
        able = [
            (place, self._hunts[place].race.ready())
            for place in places
            if not self._packs.defers(self._hunts[place].name)
        ]
        able = [(place, ready) for place, ready in able if ready]
        if not able:
            return None
        place, ready = min(able, key=lambda entry: self._load(self._hunts[entry[0]]))
        return self._hunts[place], ready[0]

    def _load(self, hunt: Hunt) -> int:
        return sum(key.startswith(f"{hunt.name}/") for key in self._packs.under_way)

    def _errand(self, hunt: Hunt, candidate: Candidate) -> dict[str, str] | None:
        """What the trial's process must know, with everything it needs at a pack; None where it cannot train now."""
        order, recorded = hunt.order(candidate), hunt.ledger.rungs(candidate.number)
        place = (_REPLAY, "") if candidate.rung in recorded else self._place(hunt, order)
        if place is None:
            return None
        hunt.started(candidate)
        self._turn = (self._hunts.index(hunt) + 1) % len(self._hunts)
        if hunt.over:
            return None
        self._packs.under_way[candidate.key], pack = place
        errand = {"order": order.plain(), "targets": hunt.spec.rungs, "recorded": recorded, "pack": pack}
        return {"errand": json.dumps(errand)}

    def _place(self, hunt: Hunt, order: Order) -> tuple[int, str] | None:
        """A pack that holds what `order` needs, and its name; None where none is up, it was lost, or the hunt fails."""
        index = self._packs.choose(order.key)
        if index is None:
            return None
        try:
            name = self._packs.prepare(order, index)
        except PetlRayError as error:  # rows that cannot be read
            hunt.fail(error)
            return None
        return None if name is None else (index, name)

    def _goes_straight_on(self, hunt: Hunt, candidate: Candidate, index: int) -> bool:
        """Start the next rung in the same process, if the errand it carries still holds."""
        recorded = candidate.rung in hunt.ledger.rungs(candidate.number)
        if not recorded and (index == _REPLAY or self._packs.choose(candidate.key) != index):
            return False
        hunt.started(candidate)
        self._packs.under_way[candidate.key] = index
        return True

    def _hear(self, controller: Controller, trial: TrialOfTune, facts: dict[str, Any]) -> bool:
        """Remember a rung and decide; False where its checkpoint is gone with its pack, so that it trains again."""
        hunt, candidate = self._errands[trial.trial_id]
        target, failed = hunt.spec.rungs[candidate.rung], bool(facts.get("diverged") or facts.get("refused"))
        keep, files = None, None
        if candidate.rung not in hunt.ledger.rungs(candidate.number) and not failed and target < 1.0:
            try:
                files = self._packs.files(candidate.key, candidate.rung)
            except PetlRayError as error:  # a session that saves nothing
                hunt.fail(error)
                return False
            if files is None:
                hunt.race.again(candidate.number)
                return False
        if hunt.name in self._keeps and not failed and candidate.number > 0:
            keep = self._keeps[hunt.name](controller, trial, target, float(facts["score"]))
        hunt.heard(candidate, facts, None if keep is False else files, keep)
        self._packs.keep(hunt.name, hunt.going())
        return True

    def _hand_over(self, controller: Controller) -> None:
        """Free the lane of one trial that waits, if the lanes are all taken."""
        if self._waiting and self._taken >= self._lanes:
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
                orders, promise = self._costs[hunt.name]
                try:
                    costs = self._packs.costs(promise)
                except PetlRayError as error:
                    hunt.fail(error)
                    continue
                if costs is None:
                    continue
                del self._costs[hunt.name]
                if costs:
                    hunt.weighed(orders, costs)
            if self._packs.defers(hunt.name):
                continue
            if (orders := hunt.unweighed()) and (promise := self._packs.weigh(orders)) is not None:
                self._costs[hunt.name] = (orders, promise)
