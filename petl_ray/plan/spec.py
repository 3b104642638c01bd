"""The whole plan: one base, its tasks, how each is prepared, searched, trained, judged; the registry and the endpoint.

What a task inherits (its name, its type, the base) is written once in the plan and laid into the rooms' own Specs
here, so that a room's Spec is the only place that knows its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from petl_ray.data import DataSource
from petl_ray.evaluation import EvalSpec
from petl_ray.models.spec import BaseSpec, TaskType
from petl_ray.registry import GateSpec, RegistrySpec
from petl_ray.serving import ServeSpec
from petl_ray.spec import NOT_IDENTITY, Spec
from petl_ray.training import TrainSpec
from petl_ray.tuning import SearchSpec

TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
UNLOCKED = {"pinned": {"uri": "unlocked", "digest": "0" * 64}, "precision": "fp32"}

Seeds = Annotated[int, Field(ge=1, le=99)]

ROLES = ("head_only", "default", "majority", "base")  # who a candidate can be held against beside the champion

# Keys of the rooms' Specs that a plan fills in itself: key -> where the user writes it instead.
GIVEN = {
    "data": {"task": "the task's own key", "task_type": "tasks.NAME.type"},
    "training": {"base": "base, at the top of the plan", "task_type": "tasks.NAME.type"},
    "search": {"recipe": "tasks.NAME.training", "recipe_spec": "tasks.NAME.training"},
    "evaluation": {"roles": "the plan itself, which knows the rivals"},
}


class TaskPlan(Spec):
    """One task: its rows, the default recipe, the search around it, and what a candidate must show."""

    type: TaskType = "classification"
    data: DataSource
    training: TrainSpec
    search: SearchSpec | None = Field(default=None, description="left out: the default recipe is trained as it stands")
    seeds: Literal["auto"] | Seeds = Field(
        default=1,
        description="trainings of the recipe that is put forward, each with a seed of its own; the one whose validation "
        "score is the median is shipped. auto: 3 where a pack has the slots and the memory, else 1",
    )
    evaluation: EvalSpec = EvalSpec()
    gate: GateSpec = GateSpec()

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.type == "causal_lm" and self.evaluation.metric in ("macro_f1", "matthews"):
            raise ValueError(
                f"evaluation.metric: got {self.evaluation.metric}; a causal_lm task has no labels. Use loss"
            )
        if self.type == "classification" and self.evaluation.metric == "perplexity":
            raise ValueError("evaluation.metric: got perplexity; a classification task has none. Use accuracy or loss")
        odd = [name for name in self.gate.yardsticks if name not in ROLES]
        if odd:
            raise ValueError(f"gate.yardsticks: got {odd[0]}; no report has it. Choose among {', '.join(ROLES)}")
        return self


class Plan(Spec):
    """A plan as read: closed, versioned, every default filled in, no outside reference resolved yet."""

    version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    owner: Annotated[str, NOT_IDENTITY] = Field(default="unowned", min_length=1, max_length=200)
    pipeline: Literal["adapt", "retrain"] = "adapt"
    base: BaseSpec
    tasks: dict[TaskName, TaskPlan] = Field(min_length=1)
    registry: RegistrySpec = RegistrySpec()
    serving: ServeSpec | None = Field(default=None, description="left out: nothing is deployed")

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, document: Any) -> Any:
        if not isinstance(document, Mapping) or not isinstance(document.get("tasks"), Mapping):
            return document
        tasks = {name: _with_given(str(name), task, document) for name, task in document["tasks"].items()}
        return {**document, "tasks": tasks}


def _with_given(name: str, task: Any, document: Mapping[str, Any]) -> Any:
    """A task's document with what the plan hands down laid in; what is no mapping is left for validation to refuse."""
    if not isinstance(task, Mapping):
        return task
    for room, keys in GIVEN.items():
        part = task.get(room)
        for key in keys:
            if isinstance(part, Mapping) and key in part:
                raise ValueError(f"tasks.{name}.{room}.{key}: is given by {keys[key]}. Leave it out here")
    kind = task.get("type", "classification")
    given = dict(task)
    if isinstance(task.get("data"), Mapping):
        given["data"] = {**task["data"], "task": name, "task_type": kind}
    training = task.get("training") or {}
    if isinstance(training, Mapping):
        metric = {"metric": "loss"} if kind == "causal_lm" else {}
        base = document.get("base")
        quantization = base.get("quantization", "none") if isinstance(base, Mapping) else "none"
        base_unlocked = {**UNLOCKED, "quantization": quantization}
        given["training"] = {**metric, **training, "task_type": kind, "base": base_unlocked}
    if isinstance(search := task.get("search"), Mapping):
        space = search.get("space")
        if isinstance(space, Mapping):  # null takes an inherited path out of the space
            search = {**search, "space": {path: domain for path, domain in space.items() if domain is not None}}
        given["search"] = {**search, "recipe": given["training"], "recipe_spec": "petl_ray.training.spec:TrainSpec"}
    if isinstance(task.get("evaluation", {}), Mapping) and isinstance(training, Mapping):
        metric = {"metric": given["training"].get("metric", "accuracy")}
        given["evaluation"] = {**metric, **(task.get("evaluation") or {})}
    return given
