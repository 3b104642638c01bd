"""The one family of errors, picklable so that it crosses processes whole.

    PetlRayError
    ├── PermanentError         the work is wrong; trying again cannot help
    │   ├── PlanError          a plan, a key or a value of it
    │   ├── DataError          a file, a row, a label
    │   ├── BaseModelError     a base model that is absent, changed or refused
    │   ├── AdapterError       adapter files that are broken or refused
    │   ├── CapacityError      more cores, memory or disk than the placement has
    │   ├── TrainingError      a run that diverged
    │   ├── NotFoundError      a name that nobody knows
    │   ├── ConflictError      a name or a port that somebody else holds
    │   └── CorruptionError    bytes that are not what their digest says
    ├── TemporaryError         the world is busy; try again after `delay_s`
    ├── ClaimLost              another owner holds this step now; park
    └── RunCancelled           somebody asked this run to stop

Every message reads *what: found; why. Do.*
"""

from __future__ import annotations

from typing import Any, Self


class PetlRayError(Exception):
    """Base of all errors that a user may see.

    `what` names the key, file or step; `found` what stands there; `why` why that cannot work; `do` the next move.
    """

    exit_code = 1

    def __init__(self, what: str, found: str = "", why: str = "", do: str = "", **extra: Any) -> None:
        super().__init__(what)
        self.what, self.found, self.why, self.do = what, found, why, do
        self.extra = extra

    def __str__(self) -> str:
        facts = "; ".join(part.rstrip(".") for part in (self.found, self.why) if part)
        text = f"{self.what}: {facts}" if facts else self.what
        return " ".join(part if part.endswith((".", "?", "!")) else f"{part}." for part in (text, self.do) if part)

    def within(self, place: str) -> Self:
        """The same error, told of `place`: a task, a step, a part of the plan."""
        return type(self)(f"{place}: {self.what}", self.found, self.why, self.do, **self.extra)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.found, self.why, self.do, self.extra)


def _rebuild(kind: type[PetlRayError], what: str, found: str, why: str, do: str, extra: dict[str, Any]) -> PetlRayError:
    return kind(what, found, why, do, **extra)


class PermanentError(PetlRayError):
    """The work is wrong: retrying cannot help."""


class PlanError(PermanentError, ValueError):
    """A plan, a key or a value of it."""

    exit_code = 2


class DataError(PermanentError, ValueError):
    """A file, a row, a label."""

    exit_code = 3


class BaseModelError(PermanentError):
    """A base model that is absent, changed or refused."""

    exit_code = 4


class AdapterError(PermanentError):
    """Adapter files that are broken or refused."""

    exit_code = 4


class CapacityError(PermanentError):
    """More cores, memory or disk than there is."""

    exit_code = 5


class TrainingError(PermanentError):
    """A training that diverged, or that broke off in a pass or a validation."""

    exit_code = 6


class NotFoundError(PermanentError, LookupError):
    """A name that nobody knows."""

    exit_code = 7


class ConflictError(PermanentError):
    """A name or a port that somebody else holds."""

    exit_code = 8


class CorruptionError(PermanentError):
    """Bytes that are not what their digest says."""

    exit_code = 9


class TemporaryError(PetlRayError):
    """The world is busy or away: try again after `delay_s` seconds (extra keyword, default 1)."""

    exit_code = 75

    @property
    def delay_s(self) -> float:
        """Seconds to wait before the next attempt, before backoff and jitter."""
        return float(self.extra.get("delay_s", 1.0))


class ClaimLost(PetlRayError):
    """Another owner holds this step now. Whoever sees this stops writing and parks."""

    exit_code = 75


class RunCancelled(PetlRayError):
    """Somebody asked this run to stop."""

    exit_code = 130
