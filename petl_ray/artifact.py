"""What floats down the river: frozen values that name their bytes by sha256.

`files` bear identity; `traces` (logs, timings, predictions for people) are kept and verified but bear none;
`about` holds plain facts without identity (seconds, host). A digest covers weights and configuration only.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from petl_ray.fingerprint import sha256_of
from petl_ray.spec import Pinned


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    odd = "\\" in path or "\0" in path or ".." in pure.parts or not pure.parts
    if odd or pure.is_absolute():
        raise ValueError("a file of an artifact lies inside it: give a relative path without '..'")
    return str(pure)


class FileEntry(BaseModel):
    """One file of an artifact: its relative POSIX path, sha256 (hex) and size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, Field(max_length=512), AfterValidator(_inside)]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Artifact(BaseModel):
    """Base of all artifacts. `digest` names the content: equal content, equal digest, in every process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    files: tuple[FileEntry, ...] = ()
    traces: tuple[FileEntry, ...] = ()
    about: dict[str, Any] = Field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """An artifact is named by its digest wherever it goes in."""
        return {"artifact": self.digest}

    @property
    def digest(self) -> str:
        """sha256 (hex) over the kind, the identity-bearing fields and the sha256 of every file in `files`."""
        facts = {name: getattr(self, name) for name in type(self).model_fields if name not in _NO_IDENTITY}
        facts["files"] = sorted([entry.path, entry.sha256] for entry in self.files)
        return sha256_of({name: _plain(value) for name, value in facts.items()})

    def file(self, path: str) -> FileEntry:
        """The entry of one file or trace by its relative path; KeyError if the artifact has none of that name."""
        for entry in (*self.files, *self.traces):
            if entry.path == path:
                return entry
        raise KeyError(path)


_NO_IDENTITY = {"traces", "about", "files"}


def _plain(value: Any) -> Any:
    """Values without an identity of their own (intervals, say) as JSON; the others untouched."""
    if isinstance(value, BaseModel) and not hasattr(value, "identity"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value


class Dataset(Artifact):
    """Prepared rows: `train.jsonl`, `validation.jsonl`, `test.jsonl` and `card.json`.

    Rows are `{"id", "text", "text_pair"?, "label"}` (label: index into `labels`) for classification and
    `{"id", "prompt", "completion"}` for causal language modelling. `id` is the sha256 of the row's content, shortened.
    """

    kind: Literal["dataset"] = "dataset"
    task: str
    task_type: Literal["classification", "causal_lm"]
    labels: tuple[str, ...] = ()
    rows: dict[str, int]


class Trial(Artifact):
    """The winner of a search: dotted overrides of the training spec, and `trials.jsonl`, every trial with its rungs.

    `score` and `default_score` are validation scores under `metric` (`mode` says which way is better); trial 0 is the
    default recipe, so their difference is what tuning was worth.
    """

    kind: Literal["trial"] = "trial"
    overrides: dict[str, Any]
    number: int
    metric: str
    mode: Literal["max", "min"]
    score: float
    default_score: float
    trials: int


class Adapter(Artifact):
    """A trained adapter: `adapter_model.safetensors`, `adapter_config.json`, `card.json` and `golden.safetensors`.

    LoRA files are PEFT's format. `card.json` (see `petl_ray.methods.card`) holds what serving needs: labels, task type,
    length limit, tokenizer digest. `golden.safetensors` holds input ids, attention mask and the logits they must give.
    """

    kind: Literal["adapter"] = "adapter"
    task: str
    task_type: Literal["classification", "causal_lm"]
    labels: tuple[str, ...] = ()
    method: str
    base: Pinned
    precision: Literal["fp32", "bf16", "fp16"]
    quantization: Literal["none", "nf4"] = "none"
    trained_parameters: int
    base_parameters: int
    validation_score: float | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the adapter's weights and configuration."""
        return sum(entry.size_bytes for entry in self.files)


class Interval(BaseModel):
    """A figure with its bootstrap interval; `low` and `high` at `level` (0.95 = 95 %)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float
    level: float = 0.95


class Report(Artifact):
    """What held-out rows say of one adapter and its rivals on the same rows: `report.json`; predictions as a trace.

    `scores` holds every metric of the candidate; `rivals` the primary metric of each rival (`majority`, `head_only`,
    `default`, `champion`, …); `differences` candidate minus rival, paired over rows; `rival_digests` which adapters the
    rivals were, so that a gate can tell whether the champion of that day is the champion of today.
    """

    kind: Literal["report"] = "report"
    task: str
    adapter_digest: str
    dataset_digest: str
    metric: str
    mode: Literal["max", "min"]
    rows: int
    scores: dict[str, Interval]
    rivals: dict[str, Interval] = Field(default_factory=dict)
    differences: dict[str, Interval] = Field(default_factory=dict)
    rival_digests: dict[str, str] = Field(default_factory=dict)


class Release(Artifact):
    """One registered version of a task's adapter, and what the gate said of it."""

    kind: Literal["release"] = "release"
    task: str
    version: int
    adapter: Adapter
    status: Literal["registered", "champion", "refused"] = "registered"
    reasons: tuple[str, ...] = ()


class Endpoint(Artifact):
    """A served address and the adapters that answer there, task → adapter digest."""

    kind: Literal["endpoint"] = "endpoint"
    url: str
    adapters: dict[str, str]


AnyArtifact = Annotated[Dataset | Trial | Adapter | Report | Release | Endpoint, Field(discriminator="kind")]
_ANY: TypeAdapter[Artifact] = TypeAdapter(AnyArtifact)


def parse_artifact(value: Any) -> Artifact:
    """An artifact from its JSON object, by its `kind`; raises pydantic.ValidationError on anything else."""
    return _ANY.validate_python(value)
