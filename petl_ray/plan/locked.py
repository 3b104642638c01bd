"""A plan whose outside references are all resolved, and the questions it asks of each room.

Steps see only this. Whether a run is the same as another is decided by `LockedPlan.digest`; champions of the day are
kept in the lock but bear no identity, so that a promotion does not turn a resumed run into another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from petl_ray.artifact import Adapter, Dataset, Trial
from petl_ray.data import DataSpec
from petl_ray.evaluation import EvalSpec
from petl_ray.fingerprint import sha256_of
from petl_ray.methods.spec import HeadSpec
from petl_ray.registry import GateSpec, RegistrySpec
from petl_ray.serving import ServeSpec
from petl_ray.spec import NOT_IDENTITY, OMIT_DEFAULT, Spec, with_overrides
from petl_ray.training import TrainSpec
from petl_ray.tuning import SearchSpec
from petl_ray.verb import Question

TUNED, DEFAULT, HEAD_ONLY, CHAMPION = "tuned", "default", "head_only", "champion"
SEED = "seed_"  # and a number: the recipe that is put forward with another seed

# The yardstick of every classification task: a linear head on frozen features, trained to convergence. A head alone
# wants a larger step than an adapter and costs no backward pass through the base, so it gets more epochs.
HEAD_LEARNING_RATE = 1e-2
HEAD_EPOCHS_FACTOR = 3.0


class LockedTask(Spec):
    """One task with its rows and base pinned."""

    type: Literal["classification", "causal_lm"]
    data: DataSpec
    training: TrainSpec
    search: SearchSpec | None
    seeds: Annotated[int, OMIT_DEFAULT] = 1
    evaluation: EvalSpec
    gate: GateSpec
    champion: Annotated[Adapter | None, NOT_IDENTITY] = None  # of the day, if it can be measured again


class LockedPlan(Spec):
    """The plan that steps see, and the questions it asks."""

    name: str
    owner: Annotated[str, NOT_IDENTITY]
    pipeline: str
    tasks: dict[str, LockedTask]
    registry: RegistrySpec
    serving: ServeSpec | None
    verbs: dict[str, int]  # versions: a verb that means something new makes another plan

    @property
    def digest(self) -> str:
        """sha256 (hex) over all that bears identity: equal digest, same run."""
        return sha256_of(self)

    def searches(self, datasets: Mapping[str, Dataset]) -> list[Question]:
        """One search per task that asks for one and whose rows are ready."""
        return [
            Question(key, task.search, (datasets[key],))
            for key, task in self.tasks.items()
            if task.search is not None and key in datasets
        ]

    def trainings(self, datasets: Mapping[str, Dataset], best: Mapping[str, Trial]) -> list[Question]:
        """Per task: the tuned recipe (where a search found one), the default recipe and, for classification, the head
        alone; of the recipe that is put forward as many as the task has seeds.

        Keys read `task/role`. Equal recipes share a name, and so one outcome.
        """
        return [
            Question(f"{key}/{role}", spec, (datasets[key],))
            for key, task in self.tasks.items()
            if key in datasets and (task.search is None or key in best)
            for role, spec in _recipes(task, best.get(key)).items()
        ]

    def candidates(self, adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """The adapter that each task puts forward: the tuned one, or the default recipe's where nothing was searched.

        Of several seeds it is the median by validation score (of an even number the worse one): the best would be
        the luckiest.
        """
        found = {key: self.seeds(key, adapters) for key in self.tasks}
        return {key: mine[_median(mine, self.tasks[key].training.mode)] for key, mine in found.items() if mine}

    def seeds(self, key: str, adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """The trainings of the recipe that the task puts forward, by `seed_0`, `seed_1`, … as far as they are there."""
        task = self.tasks[key]
        roles = {f"{SEED}0": _forward(task), **{role: role for role in _further_seeds(task)}}
        keys = {role: f"{key}/{name}" for role, name in roles.items()}
        return {role: _read_here(adapters[name], task) for role, name in keys.items() if name in adapters}

    def evaluation(self, key: str, rivals: Mapping[str, Adapter]) -> EvalSpec:
        """How the task's candidate is compared with `rivals`, in their order."""
        return self.tasks[key].evaluation.model_copy(update={"roles": tuple(rivals)})

    def rivals(self, key: str, candidate: Adapter, adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """Who the candidate is measured beside, by role: yardsticks, its own recipe with other seeds, and the champion
        unless it is the candidate itself.

        The champion may have other labels or another base than the candidate: it answers the same rows on its own.
        """
        task = self.tasks[key]
        rivals = {
            role: _read_here(adapters[f"{key}/{role}"], task)
            for role in (HEAD_ONLY, DEFAULT)
            if f"{key}/{role}" in adapters and not (role == DEFAULT and task.search is None)
        }
        if len(mine := self.seeds(key, adapters)) > 1:
            rivals |= {role: other for role, other in mine.items() if role != _median(mine, task.training.mode)}
        champion = task.champion
        if champion is not None and champion.digest != candidate.digest:
            rivals[CHAMPION] = _read_here(champion, task)
        return rivals


def _read_here(adapter: Adapter, task: LockedTask) -> Adapter:
    """The adapter with its base read from where the plan reads these bytes today: it may have been trained elsewhere."""
    here = task.training.base.pinned
    if not isinstance(adapter, Adapter) or adapter.base.digest != here.digest:  # a rehearsal hands in what is unknown
        return adapter
    return adapter.model_copy(update={"base": here})


def _recipes(task: LockedTask, best: Trial | None) -> dict[str, TrainSpec]:
    recipes: dict[str, TrainSpec] = {}
    if best is not None:
        recipes[TUNED] = with_overrides(task.training, best.overrides)
    recipes[DEFAULT] = task.training
    forward = recipes[_forward(task)]
    for number, role in enumerate(_further_seeds(task), start=1):
        recipes[role] = forward.model_copy(update={"seed": (forward.seed + number) % 2**32})
    if task.type == "classification":
        changes: dict[str, Any] = {
            "method": HeadSpec(),
            "learning_rate": HEAD_LEARNING_RATE,
            "head_learning_rate": None,
            "epochs": task.training.epochs * HEAD_EPOCHS_FACTOR,
            "gradient_checkpointing": False,
            "lora_plus": 1.0,
            "phases": (),
        }
        recipes[HEAD_ONLY] = task.training.model_copy(update=changes)
    return recipes


def _forward(task: LockedTask) -> str:
    """The role of the recipe that the task puts forward."""
    return DEFAULT if task.search is None else TUNED


def _further_seeds(task: LockedTask) -> list[str]:
    """The roles of its trainings beside the first."""
    return [f"{SEED}{number}" for number in range(1, task.seeds)]


def _median(found: Mapping[str, Adapter], mode: str) -> str:
    """The role of the median by validation score, of equals the first; in a rehearsal, where no score is known, any."""
    if not all(isinstance(one, Adapter) for one in found.values()):
        return next(iter(found))
    sign = 1.0 if mode == "max" else -1.0
    ordered = sorted(found, key=lambda role: sign * (found[role].validation_score or 0.0))
    return ordered[(len(ordered) - 1) // 2]
