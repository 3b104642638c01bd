"""The values that one field of a recipe may take: a closed set of domains, each with a short form for YAML.

[4, 8, 16]                      choice of values, in this order
{loguniform: [1e-4, 1e-2]}      a float, uniform in its logarithm
{uniform: [0.0, 0.1]}           a float
{quniform: [0.0, 0.3, 0.05]}    a float on a grid of that step from the low end
{integer: [1, 16]}              a whole number, both ends included; {logint: [1, 64]} uniform in its logarithm
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from petl_ray.spec import Json, Spec


class Choice(Spec):
    """One of `values`; their order means nothing."""

    kind: Literal["choice"] = "choice"
    values: tuple[Json, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen = [(type(value), value) for value in self.values]
        twice = [value for index, (_, value) in enumerate(seen) if seen[index] in seen[:index]]
        if twice:
            raise ValueError(f"values: got {twice[0]!r} twice; each value needs to stand once. Remove one")
        return self


class _Range(Spec):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"got low {self.low} and high {self.high}; nothing lies between. Put the lower end first")
        return self


class Uniform(_Range):
    """A float in [low, high]."""

    kind: Literal["uniform"] = "uniform"


class LogUniform(_Range):
    """A float in [low, high], uniform in its logarithm; low must be positive."""

    kind: Literal["loguniform"] = "loguniform"
    low: float = Field(gt=0)


class QUniform(_Range):
    """A float low, low + step, … up to high."""

    kind: Literal["quniform"] = "quniform"
    step: float = Field(gt=0)


class Integer(_Range):
    """A whole number from low to high, both included."""

    kind: Literal["integer"] = "integer"
    low: int
    high: int


class LogInt(_Range):
    """A whole number from low to high, both included, uniform in its logarithm."""

    kind: Literal["logint"] = "logint"
    low: int = Field(ge=1)
    high: int


_ENDS = {
    "uniform": ("low", "high"),
    "loguniform": ("low", "high"),
    "quniform": ("low", "high", "step"),
    "integer": ("low", "high"),
    "logint": ("low", "high"),
}


def _long_form(value: Any) -> Any:
    """The short YAML forms as the long one; what says its kind is left for pydantic to judge."""
    if isinstance(value, list | tuple):
        return {"kind": "choice", "values": list(value)}
    if isinstance(value, Spec) or (isinstance(value, dict) and "kind" in value):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"got {value!r}; a field is searched over a list or a range. Write [{value!r}]")
    if len(value) != 1:
        keys = f"the keys {', '.join(map(str, value))}" if value else "an empty mapping"
        raise ValueError(f"got {keys}; a domain is one key, its kind. Write for instance {{uniform: [low, high]}}")
    ((kind, ends),) = value.items()
    if kind == "choice":
        return {"kind": "choice", "values": ends}
    if kind not in _ENDS:
        raise ValueError(f"got {kind}; {_no_domain(str(kind))}")
    names = _ENDS[kind]
    if not isinstance(ends, list | tuple) or len(ends) != len(names):
        found = f"{len(ends)} numbers" if isinstance(ends, list | tuple) else repr(ends)
        raise ValueError(f"{kind}: got {found}; it takes {len(names)}: [{', '.join(names)}]")
    return {"kind": kind, **dict(zip(names, ends, strict=True))}


def _no_domain(name: str) -> str:
    known = ("choice", *_ENDS)
    near = get_close_matches(name, known, n=1)
    if near:
        return f"no domain is called so. Did you mean {near[0]}?"
    return f"no domain is called so ({', '.join(known)}). A path into the recipe is one key, such as method.rank"


Domain = Annotated[
    Annotated[Choice | Uniform | LogUniform | QUniform | Integer | LogInt, Field(discriminator="kind")],
    BeforeValidator(_long_form),
]


def listed(domain: Choice | Uniform | LogUniform | QUniform | Integer | LogInt) -> list[Json] | None:
    """All values of a domain in order, or None where they cannot be counted."""
    if isinstance(domain, Choice):
        return list(domain.values)
    if isinstance(domain, Integer | LogInt):
        return list(range(domain.low, domain.high + 1))
    if isinstance(domain, QUniform):
        count = int((domain.high - domain.low) / domain.step + 1e-9) + 1
        return [domain.low + index * domain.step for index in range(count)]
    return None
