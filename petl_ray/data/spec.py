"""What may be asked of data: where rows come from, which columns mean what, how they are split.

`DataSource` is what a plan says; `DataSpec` is the same after `lock()`, with every reference pinned to its bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from petl_ray.data.times import seconds
from petl_ray.spec import Pinned, Spec


def _time(text: str) -> str:
    seconds(text)  # raises ValueError
    return text


TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Column = Annotated[str, StringConstraints(min_length=1)]
Time = Annotated[str, AfterValidator(_time)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Columns(Spec):
    """Which column holds what; a column left out is found by its usual names (`sentence`, `intent`, `response`, …)."""

    text: Column | None = None
    text_pair: Column | None = None
    label: Column | None = None
    prompt: Column | None = None
    completion: Column | None = None


class Split(Spec):
    """How rows find their side where the plan names no file for it.

    `row` (default): by a hash of the row's text, so that a row keeps its side when data grows. `group`: the same by the
    value of `column`, whole groups on one side. `time`: by the value of `column` (ISO 8601, or numbers): rows from
    `test_from` on are tested, those before it and from `validation_from` on are validated. These instants stand in the
    plan and not in the data, so that no old test row is trained on once newer rows have come; move them by hand.
    A share is a part (0…1) of all rows; 0 asks for no such side. It has no other effect by time, and none for a side
    that has a file of its own.
    """

    validation: Share = 0.1
    test: Share = 0.2
    by: Literal["row", "group", "time"] = "row"
    column: Column | None = None
    seed: int = 0
    validation_from: Time | None = None
    test_from: Time | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.validation + self.test >= 1:
            taken = self.validation + self.test
            raise ValueError(f"validation and test take {taken:g} of all rows; leave some to train")
        if (self.by == "row") != (self.column is None):
            raise ValueError(f"by: {self.by} {'takes no' if self.column else 'needs a'} column")
        if self.by != "time" and (self.validation_from or self.test_from):
            raise ValueError("validation_from and test_from belong to `by: time`")
        if self.validation_from and self.test_from and seconds(self.validation_from) >= seconds(self.test_from):
            raise ValueError(f"validation_from {self.validation_from} is not before test_from {self.test_from}")
        return self

    def asks_for(self, side: Literal["validation", "test"]) -> bool:
        """Whether rows are wanted on that side."""
        return bool(getattr(self, f"{side}_from") or getattr(self, side))


class DataRules(Spec):
    """What is asked of rows, wherever they come from."""

    task: TaskName
    task_type: Literal["classification", "causal_lm"] = "classification"
    format: Literal["auto", "jsonl", "csv", "parquet"] = "auto"
    columns: Columns = Columns()
    labels: tuple[str, ...] | None = Field(
        default=None, description="the labels in their order; left out: those of the training rows, sorted"
    )
    split: Split = Split()
    deduplicate: bool = True
    max_rows: int | None = Field(default=None, ge=1, description="at most so many rows a side, chosen by hash")
    on_unseen_label: Literal["error", "drop"] = "error"

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.task_type == "causal_lm" and self.labels is not None:
            raise ValueError("labels: a causal_lm task has none")
        foreign = ("text", "text_pair", "label") if self.task_type == "causal_lm" else ("prompt", "completion")
        if odd := [name for name in foreign if getattr(self.columns, name) is not None]:
            raise ValueError(f"columns.{odd[0]}: a {self.task_type} task has no {odd[0]}")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a label is named twice")
        return self

    @model_validator(mode="after")
    def _instants_are_fixed(self) -> Self:
        """A share of rows by time would be another instant tomorrow."""
        for side in ("validation", "test") if self.split.by == "time" else ():
            if (
                self.split.asks_for(side)
                and not getattr(self.split, f"{side}_from")
                and getattr(self, side, None) is None
            ):
                raise ValueError(
                    f"split: by: time needs {side}_from, the instant from which rows belong to {side} (or {side}: 0). A "
                    "share would move it as data grows, and old test rows into training"
                )
        return self


class DataSource(DataRules):
    """Rows as a plan names them.

    `train`, `validation`, `test`: a path, a path with `*`, or `hf:org/name[:config][@revision][#split]` (Hugging Face;
    a local directory in that layout is `hf:./directory`). What is left out is split off from the training rows.
    """

    train: str
    validation: str | None = None
    test: str | None = None


class DataSpec(DataRules):
    """Rows pinned to their bytes: what `prepare` is asked."""

    train: Pinned
    validation: Pinned | None = None
    test: Pinned | None = None
