"""Searches under Ray Tune: thin trials that ask pack actors to train, and the two places where Tune asks us.

Tune asks the `Asker` (its Searcher) for new trials and the `Judge` (its TrialScheduler) what a result means; both only
pass on what the lanes and the races behind them say. A trial's process holds nothing: it carries one order to a pack
and brings the facts of one rung back.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from petl_ray.artifact import Dataset, Trial
from petl_ray.errors import CapacityError, PetlRayError
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.lanes import Lanes, Stopper
from petl_ray.tuning.pack import Order
from petl_ray.tuning.packs.on_ray import NAMESPACE, RETRIES, Packs
from petl_ray.tuning.scratch import Scratch
from petl_ray.tuning.spec import SearchSpec
from petl_ray.verb import Question, Resources, StepContext, Verb

_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trial table is ours
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C belongs to whoever runs the pipeline
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # resume replays records; nothing of Tune's state is ever read
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # the lanes bound what is pending
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}


def search(spec: SearchSpec, dataset: Dataset, *, train: Verb, step: StepContext) -> Trial:
    """The best overrides of `spec.recipe` within `spec.space` for `dataset`, and every trial on the way there.

    Raises PlanError where the question makes no sense, TrainingError where the default recipe diverges, CapacityError
    where the cluster is smaller than the placement, and whatever the step raises (ClaimLost, RunCancelled).
    """
    ((_, outcome),) = search_all([Question(dataset.task, spec, (dataset,))], [step], train=train)
    if isinstance(outcome, PetlRayError):
        raise outcome
    return outcome


def search_all(
    questions: Sequence[Question], steps: Sequence[StepContext], *, train: Verb
) -> Iterator[tuple[int, Trial | PetlRayError]]:
    """(index, Trial or error) of each question, all of them in one Tune run over the same packs."""
    outcomes: dict[int, PetlRayError] = {}
    hunts: dict[int, Hunt] = {}
    try:
        for index, (question, step) in enumerate(zip(questions, steps, strict=True)):
            try:
                hunts[index] = Hunt(f"q{index}", question, step)
            except PetlRayError as error:
                outcomes[index] = error
        if any(not hunt.over for hunt in hunts.values()):
            with _cluster():
                for engine in dict.fromkeys(hunt.spec.engine for hunt in hunts.values()):
                    _run([hunt for hunt in hunts.values() if hunt.spec.engine == engine], steps[0].resources, train)
        for index in range(len(questions)):
            yield index, outcomes[index] if index in outcomes else hunts[index].outcome()
    finally:
        for hunt in hunts.values():
            hunt.close()


@contextmanager
def _cluster() -> Iterator[None]:
    """The Ray cluster this process belongs to; a local one for the time of the search where there is none."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _run(hunts: list[Hunt], resources: Resources, train: Verb) -> None:
    for name, value in _TUNE.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by the hunts
    try:
        _refuse_what_cannot_be(resources)
    except CapacityError as error:
        for hunt in hunts:
            hunt.fail(error)
        return
    packs = Packs(hunts, resources, train.function.split(":")[0].rpartition(".")[0] + ".session:open_session")
    judge = Judge(hunts, packs)
    with closing(Scratch("tune")) as scratch, closing(packs):
        tuner = tune.Tuner(
            tune.with_resources(ThinTrial, {"memory": 1}),  # no CPU: the packs hold the cores; but not nothing
            tune_config=tune.TuneConfig(
                search_alg=Asker(judge.lanes),
                scheduler=judge,
                num_samples=1_000_000_000,  # the Asker says when it is over
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(scratch.path),
                verbose=0,
                callbacks=[Silence()],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
        tuner.fit()


def _refuse_what_cannot_be(resources: Resources) -> None:
    """Raise CapacityError for packs that the machines of the cluster could never hold at once."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    packs, fit = max(1, resources.packs), resources.fit(machines)
    if packs > fit:
        asked = f"asks for {packs} packs of {max(1, resources.cpus)} CPU and {resources.gpus:g} GPU each"
        why = f"the {len(machines)} machines of the cluster hold {fit}"
        raise CapacityError("placement of search", asked, why, "Lower cpus, gpus or packs of search")


class ThinTrial(tune.Trainable):  # type: ignore[misc]  # ray has no types
    """A trial's process: it carries orders to packs and replays what is recorded. It imports no torch."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._errand = json.loads(new_config["errand"])
        return True

    def step(self) -> dict[str, Any]:
        if self._errand is None:
            return {"facts": "null"}
        plain, targets = self._errand["order"], self._errand["targets"]
        order = Order(**{**plain, "target": targets[plain["rung"]]})
        facts = self._errand["recorded"].get(str(order.rung))
        if facts is None:
            facts = ray.get(ray.get_actor(self._errand["pack"], NAMESPACE).advance.remote(order))
        plain["rung"] += 1
        return {"facts": json.dumps(facts)}


class Silence(TrialProgressCallback):  # type: ignore[misc]  # ray has no types
    """Stands in for Tune's own printing: progress goes through the steps."""

    def _print(self, msg: str) -> None: ...


class Asker(Searcher):  # type: ignore[misc]  # ray has no types
    """Tune asks here for new trials; there is one as soon as a race has one ready and a lane can take it."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()
        self._lanes = lanes

    def suggest(self, trial_id: str) -> Any:
        if self._lanes.over:
            return Searcher.FINISHED
        return self._lanes.new_trial(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            self._lanes.given_up(trial_id)

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def __reduce__(self) -> Any:
        return Searcher, ()  # Tune pickles its settings into the scratch folder; nobody reads them


class Judge(FIFOScheduler):  # type: ignore[misc]  # ray has no types
    """Tune asks here which trial runs next and what a result means; the lanes answer."""

    def __init__(self, hunts: list[Hunt], packs: Packs) -> None:
        super().__init__()
        self._stoppers = {hunt.name: _stopper(hunt) for hunt in hunts if hunt.asynchronous}
        times = {hunt.name: _times(hunt.spec) for hunt in hunts}
        keeps = {name: self._keeps(stopper, times[name]) for name, stopper in self._stoppers.items()}
        self.lanes = Lanes(hunts, packs, keeps, tries=RETRIES + 1)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        return self.lanes.choose(tune_controller)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        if stopper := self._stoppers.get(self.lanes.search_of(trial)):
            stopper.on_trial_add(tune_controller, trial)
        self.lanes.added(trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self.lanes.failed(trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        return self.lanes.heard(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None: ...

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None: ...

    def __reduce__(self) -> Any:
        return FIFOScheduler, ()  # as the Asker

    @staticmethod
    def _keeps(stopper: Any, times: dict[float, dict[str, float]]) -> Stopper:
        def keeps(controller: Any, trial: Any, share: float, score: float) -> bool:
            said = stopper.on_trial_result(controller, trial, {**times[share], "score": score})
            return bool(said != TrialScheduler.STOP)

        return keeps


def _times(spec: SearchSpec) -> dict[float, dict[str, float]]:
    """What Tune's rules are told of time at each share. ASHA's milestones are powers of its reduction and no list: so
    `rung` counts in powers, and the milestones are the search's own rungs."""
    return {share: {"share": share, "rung": spec.reduction**index} for index, share in enumerate(spec.rungs)}


def _stopper(hunt: Hunt) -> Any:
    """Tune's own rule for `decisions: async`."""
    spec, mode = hunt.spec, hunt.race.recipe.mode
    if spec.scheduler == "asha":
        return ASHAScheduler("rung", "score", mode, spec.reduction ** len(spec.rungs), 1, spec.reduction)
    if spec.scheduler == "median":
        return MedianStoppingRule("share", "score", mode, grace_period=spec.rungs[0])
    return FIFOScheduler()
