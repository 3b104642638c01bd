"""Which adapter, how large, where: one Spec per method, told apart by `kind`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from petl_ray.spec import OMIT_DEFAULT, Spec

TARGET_SETS = ("attention", "query_value", "mlp", "all-linear")
IA3_SETS = ("key_value_feedforward", "key_value", "feedforward")
LARGEST_RANK = 512
LARGEST_SCALE = 256.0  # alpha / rank beyond this is a mistake or an attack, never a recipe


class LoraSpec(Spec):
    """Low-rank adaptation (Hu et al. 2021): W x + (alpha / rank) · B A x on the targeted linear maps.

    `targets` is a named set (`attention`, `query_value`, `mlp`, `all-linear`) or module names (suffixes, as in PEFT).
    `rslora` scales by alpha / √rank (Kalajdzievski 2023). `layers` narrows it to the layers of these numbers, counted
    from 0; none given means all.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, validation_alias=AliasChoices("rank", "r"))
    alpha: float = Field(default=16.0, validation_alias=AliasChoices("alpha", "lora_alpha"))
    targets: str | tuple[str, ...] = Field(
        default="all-linear", validation_alias=AliasChoices("targets", "target_modules")
    )
    dropout: float = Field(default=0.0, validation_alias=AliasChoices("dropout", "lora_dropout"))
    rslora: bool = Field(default=False, validation_alias=AliasChoices("rslora", "use_rslora"))
    layers: Annotated[tuple[int, ...] | None, OMIT_DEFAULT] = Field(
        default=None, validation_alias=AliasChoices("layers", "layers_to_transform")
    )

    @property
    def scale(self) -> float:
        """What multiplies B A x."""
        return float(self.alpha / (self.rank**0.5 if self.rslora else self.rank))

    @field_validator("rank")
    @classmethod
    def _some_rank(cls, rank: int) -> int:
        if rank < 1:
            _refuse("rank", f"got {rank}; a LoRA of rank {rank} learns nothing. Choose 1 or more.")
        if rank > LARGEST_RANK:
            _refuse("rank", f"got {rank}; that is no longer a small adapter. Choose at most {LARGEST_RANK}.")
        return rank

    @field_validator("alpha")
    @classmethod
    def _some_alpha(cls, alpha: float) -> float:
        if alpha <= 0:
            _refuse("alpha", f"got {alpha:g}; the adapter would be switched off or turned round. Choose above 0.")
        return alpha

    @field_validator("dropout")
    @classmethod
    def _a_share(cls, dropout: float) -> float:
        if not 0 <= dropout < 1:
            _refuse("dropout", f"got {dropout:g}; a dropout is the share set to zero. Choose 0 or more, below 1.")
        return dropout

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return _known_set_or_names(targets, TARGET_SETS, "a LoRA")

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is None:
            return None
        if not layers:
            _refuse(
                "layers", "got an empty list; a LoRA on no layer learns nothing. Name one, or leave it out for all."
            )
        if min(layers) < 0:
            _refuse("layers", f"got {min(layers)}; layers count from 0. Choose 0 or more.")
        return tuple(sorted(set(layers)))

    @model_validator(mode="after")
    def _sane_scale(self) -> Self:
        if self.scale > LARGEST_SCALE:
            _refuse(
                "alpha",
                f"got alpha {self.alpha:g} at rank {self.rank}; a scale of {self.scale:g} drowns the base. "
                f"Keep alpha / rank at {LARGEST_SCALE:g} or less.",
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_was_not_asked(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cards of adapters on all layers keep the bytes they had before layers could be chosen."""
        written: dict[str, Any] = plain(self)
        if self.layers is None:
            written.pop("layers", None)
        return written


class Ia3Spec(Spec):
    """(IA)³ (Liu et al. 2022): learned vectors that scale the outputs of key and value projections and the input of the
    feed-forward part's last projection. Fused query-key-value projections are scaled whole.

    `targets` is a named set (`key_value_feedforward`, `key_value`, `feedforward`) or module names (suffixes, as in PEFT).
    Of named modules, those that `feedforward` names have their input scaled; without it, the feed-forward's last.
    """

    kind: Literal["ia3"] = "ia3"
    targets: str | tuple[str, ...] = Field(
        default="key_value_feedforward", validation_alias=AliasChoices("targets", "target_modules")
    )
    feedforward: tuple[str, ...] | None = Field(
        default=None, validation_alias=AliasChoices("feedforward", "feedforward_modules")
    )

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return _known_set_or_names(targets, IA3_SETS, "an IA3")

    @field_validator("feedforward")
    @classmethod
    def _in_order(cls, feedforward: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if feedforward is None else tuple(sorted(set(feedforward)))

    @model_validator(mode="after")
    def _feedforward_among_targets(self) -> Self:
        if self.feedforward is None:
            return self
        if isinstance(self.targets, str):
            _refuse("feedforward", f"got a list beside '{self.targets}', which knows its own. Leave it out.")
        if strange := sorted(set(self.feedforward) - set(self.targets)):
            _refuse("feedforward", f"got '{strange[0]}', which targets do not name. Name it there too.")
        return self


class BottleneckSpec(Spec):
    """Bottleneck adapters (Houlsby et al. 2019): two per layer, after the attention's and the feed-forward's output
    projection and before the residual sum; y + W_up act(W_down y + b_down) + b_up. The layer norms are trained too."""

    kind: Literal["bottleneck"] = "bottleneck"
    size: int = 32
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"

    @field_validator("size")
    @classmethod
    def _some_size(cls, size: int) -> int:
        if size < 1:
            _refuse("size", f"got {size}; a bottleneck of width {size} lets nothing through. Choose 1 or more.")
        if size > 4096:
            _refuse("size", f"got {size}; that is no longer a small adapter. Choose at most 4096.")
        return size


class HeadSpec(Spec):
    """The classification head alone over the frozen base: the yardstick of every adapter."""

    kind: Literal["head"] = "head"


def _lora_unless_named(value: Any) -> Any:
    return {"kind": "lora", **value} if isinstance(value, dict) and "kind" not in value else value


MethodSpec = Annotated[
    Annotated[LoraSpec | Ia3Spec | BottleneckSpec | HeadSpec, Field(discriminator="kind")],
    BeforeValidator(_lora_unless_named),
]


def _known_set_or_names(targets: str | tuple[str, ...], sets: tuple[str, ...], what: str) -> str | tuple[str, ...]:
    if isinstance(targets, str):
        if targets not in sets:
            known = ", ".join(sets)
            _refuse("targets", f"got '{targets}'; the named sets are {known}. Choose one or give a list of modules.")
        return targets
    if not targets:
        _refuse("targets", f"got an empty list; {what} on nothing learns nothing. Name at least one module.")
    for name in targets:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}", name):
            _refuse("targets", f"got {name!r}; that is no module name. Use names such as q_proj or layer.0.mlp.")
    return tuple(sorted(set(targets)))


def _refuse(field: str, text: str) -> Any:
    raise PydanticCustomError(f"method_{field}", "{text}", {"text": text})  # type: ignore[misc,unused-ignore]
