"""What may be asked of a search: the recipe to improve, the space around it, how to sample, when to stop. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from petl_ray.spec import NOT_IDENTITY, OMIT_DEFAULT, Json, Spec
from petl_ray.tuning.brackets import Brackets
from petl_ray.tuning.domains import Domain, listed
from petl_ray.verb import SHARED_FIELDS, load


class Limits(Spec):
    """What a configuration may cost; judged before anything is trained. None: no limit."""

    trained_share: float | None = Field(default=None, gt=0, le=1, description="trained over all parameters")
    memory_bytes: int | None = Field(default=None, gt=0, description="bytes of one slot beside the base")


class SearchSpec(Spec):
    """One search. Trial 0 is always the recipe as it stands, trained to the end: tuning must say what it was worth.

    `recipe` is the training spec to start from; give the Spec itself, or its JSON with `recipe_spec`, the import name
    of its class. `space` maps dotted paths in the recipe to domains. The sampler is asked `generation` configurations
    at a time: a number of the question, not of the hardware, so that placement never changes an outcome.

    Schedulers: asha and hyperband stop all but the best at each rung (equal scores draw lots, where rungs decide;
    hyperband's brackets wait longer with that, each its own time), median stops the worse half, none nobody. pbt stops
    nobody either: all trials are one population, sampled at once, and at each rung the worst go on from checkpoints of
    the best with other rates.
    """

    recipe: dict[str, Any]
    recipe_spec: Annotated[str, NOT_IDENTITY]
    space: dict[str, Domain] = Field(min_length=1)
    trials: int = Field(default=16, ge=1, le=10_000)
    algorithm: Literal["optuna", "random", "grid"] = "optuna"
    startup_trials: int = Field(default=4, ge=0, description="random configurations before optuna's TPE proposes")
    scheduler: Literal["asha", "hyperband", "median", "pbt", "none"] = "asha"
    reduction: float = Field(
        default=2.0, gt=1, le=16, description="asha and hyperband keep the best 1/reduction of each rung"
    )
    quantile: Annotated[float, OMIT_DEFAULT] = Field(
        default=0.25,
        gt=0,
        le=0.5,
        description="pbt: at each rung this part, the worst, copies from as many of the best",
    )
    rungs: tuple[float, ...] = Field(default=(0.125, 0.25, 0.5, 1.0), min_length=1)
    decisions: Literal["rung", "async"] = "rung"
    generation: int = Field(
        default=8, ge=1, le=1024, description="trials asked, and under way, at once; a population is asked whole"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    limits: Limits = Limits()
    engine: Annotated[Literal["auto", "packed", "solo"], NOT_IDENTITY] = Field(
        default="auto", description="trials side by side over one base, each alone in its process, or what suits"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_recipe(cls, value: Any) -> Any:
        recipe = value.get("recipe") if isinstance(value, Mapping) else None
        if not isinstance(recipe, Spec):
            return value
        name = f"{type(recipe).__module__}:{type(recipe).__qualname__}"
        return {**value, "recipe": recipe.model_dump(mode="json"), "recipe_spec": name}

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(low < high for low, high in zip((0.0, *rungs), rungs, strict=False))
        if not rising or rungs[-1] != 1.0:
            raise ValueError(
                f"rungs: got {list(rungs)}; they are rising shares of the horizon and the last is the whole of it. "
                "Write for instance [0.25, 0.5, 1.0]"
            )
        return rungs

    @model_validator(mode="after")
    def _base_stays(self) -> Self:
        moved = [path for path in self.space if path.split(".")[0] in (*SHARED_FIELDS, "metric")]
        if moved:
            raise ValueError(
                f"space: got {moved[0]}; a search has one frozen base, which its trials share, and one measure. "
                "Search other fields"
            )
        uncounted = [path for path, domain in self.space.items() if listed(domain) is None]
        if self.algorithm == "grid" and uncounted:
            raise ValueError(f"space.{uncounted[0]}: got a range; a grid needs countable values. List them")
        return self

    @model_validator(mode="after")
    def _population(self) -> Self:
        if self.scheduler != "pbt":
            return self
        for name, found, why, do in (
            ("decisions", self.decisions, "trials copy from one another where all stand at one rung", "Write rung"),
            ("trials", self.trials, "a population has somebody to copy from", "Write 2 or more"),
            ("rungs", list(self.rungs), "trials copy at every rung but the last", "Write for instance [0.5, 1.0]"),
        ):
            if found in ("async", 1, [1.0]):
                raise ValueError(f"{name}: got {found} with scheduler pbt; {why}. {do}")
        return self

    def template(self) -> Spec:
        """The recipe as the training spec it is. Raises pydantic.ValidationError where it is none."""
        return cast("type[Spec]", load(self.recipe_spec)).model_validate(self.recipe)

    def identity(self) -> dict[str, Any]:
        """As every Spec, with the recipe by its own identity: what does not name it there does not name it here."""
        return {**super().identity(), "recipe": self.template()}


def planned_work(spec: SearchSpec) -> dict[str, Json]:
    """What a search is expected to cost: `trials`, and `full_trainings`, the sum of the horizons' shares.

    Trial 0 runs whole; of the others asha is expected to keep 1/reduction at every rung, hyperband the same from the
    rung on where a trial's bracket begins to cut, and median a half. Nothing is cut by pbt.
    """
    kept = {"asha": 1 / spec.reduction, "hyperband": 1 / spec.reduction, "median": 0.5}.get(spec.scheduler, 1.0)
    shares = [high - low for low, high in zip((0.0, *spec.rungs), spec.rungs, strict=False)]
    brackets = Brackets(len(spec.rungs), spec.reduction)
    uncut = [brackets.of(number) if spec.scheduler == "hyperband" else 0 for number in range(1, spec.trials)]
    others = sum(share * kept ** max(0, rung - free) for free in uncut for rung, share in enumerate(shares))
    return {"trials": spec.trials, "full_trainings": round(1 + others, 3)}
