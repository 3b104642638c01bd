"""What packs have failed at: the base of a search, a trial, or all of it; and what a search ends with for it. No Ray."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable

from petl_ray.errors import CapacityError, PermanentError, PetlRayError, PlanError
from petl_ray.tuning.hunt import Hunt
from petl_ray.tuning.sessions import NoSession

_FULL = {errno.ENOSPC, errno.EDQUOT}


class Losses:
    """Packs by index: which of them could not open the base of a search, and in which a trial has failed.

    `put_away` are those that made way for another process since they could open no base that was needed.
    """

    def __init__(self, hunts: Iterable[Hunt]) -> None:
        self._bases = {hunt.name: hunt.session for hunt in hunts}
        self._lacking: dict[str, dict[int, NoSession]] = {}  # by base
        self._failed: dict[str, set[int]] = {}  # by trial key
        self.put_away: set[int] = set()

    def lacks(self, index: int, search: str, why: NoSession) -> None:
        """A pack could not open the base of a search, nor will it open it for another one."""
        self._lacking.setdefault(self._bases[search], {})[index] = why

    def can(self, index: int, search: str) -> bool:
        """Whether a pack may have the base of a search."""
        return index not in self._lacking.get(self._bases[search], {})

    def waits(self, search: str, up: Collection[int]) -> bool:
        """Whether the base of a search could be opened nowhere yet, nor can it be in the packs that are `up`."""
        return self._bases[search] in self._lacking and not any(self.can(index, search) for index in up)

    def failed(self, index: int, key: str) -> None:
        """A trial broke in a pack, which did not break with it."""
        self._failed.setdefault(key, set()).add(index)

    def has_failed(self, index: int, key: str) -> bool:
        """Whether a trial broke in a pack."""
        return index in self._failed.get(key, ())

    def asks_wrongly(self, search: str) -> bool:
        """Whether what was said of a search's base is that it asks for what no process can answer."""
        lacking = self._lacking.get(self._bases[search], {})
        return any(isinstance(why.reason, PlanError) for why in lacking.values())

    def end(self, search: str, error: Exception) -> PetlRayError:
        """What a search ends with that no pack can train: what was said of its base last, else of `error`, which was the
        last that happened to a pack."""
        said = list(self._lacking.get(self._bases[search], {}).values())
        return said[-1].reason if said else _loss(error)

    def useless(self, packs: Iterable[int], searches: Collection[str]) -> dict[int, NoSession]:
        """Those of `packs` that can open the base of none of `searches`, and what they said last."""
        found = {}
        for index in packs:
            if searches and not any(self.can(index, search) for search in searches):
                found[index] = [self._lacking[self._bases[search]][index] for search in searches][-1]
        return found


def search_of(key: str) -> str:
    """The name of the search that a trial's key begins with."""
    return key.partition("/")[0]


def last_line(error: Exception) -> str:
    """The last line that an error says: of one that was raised in another process, what it was."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _loss(error: Exception) -> PetlRayError:
    why = "its packs were lost more often than they may be"
    if isinstance(error, OSError) and error.errno in _FULL:
        return CapacityError("search", str(error), why, "Free space where temporary files lie, then run it again")
    return PermanentError("search", (str(error).strip().splitlines() or [type(error).__name__])[0], why)
