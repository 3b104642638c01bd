"""The sessions that one process has open, one for each base that its trials share, and the bases it could not open.

Why a base cannot be opened is no verdict on a trial: its hub is away, its directory is missing on this machine, memory
ran out while it was loaded. So nothing of it is answered to a trial as if it were.
"""

from __future__ import annotations

from copy import copy
from typing import cast

from petl_ray.errors import CapacityError, PermanentError, PetlRayError, TemporaryError
from petl_ray.fingerprint import sha256_of
from petl_ray.spec import Spec
from petl_ray.verb import SHARED_FIELDS, SlotSession, TrainsSlots, load


class NoSession(TemporaryError):
    """A base could not be opened in this process, where another may fare better; `reason` is what was said of it."""

    @property
    def reason(self) -> PetlRayError:
        """What the search ends with where no process can open it."""
        return cast("PetlRayError", self.extra["reason"])


def shared_name(spec: Spec) -> str:
    """Names what trials must have in common to share a session."""
    return sha256_of([getattr(spec, name, None) for name in SHARED_FIELDS])


class Sessions:
    """Sessions of `slots` slots, opened through `door` (`petl_ray.verb.TrainsSlots`) when first asked for.

    What could not be opened once is not tried again: who asks next goes to another process.
    """

    def __init__(self, door: str, slots: int, threads: int) -> None:
        self._door, self._slots, self._threads = door, slots, threads
        self._open: dict[str, SlotSession] = {}
        self._failed: dict[str, PetlRayError] = {}

    def is_new(self, spec: Spec) -> bool:
        """Whether the base of `spec` has not been asked for yet."""
        name = shared_name(spec)
        return name not in self._open and name not in self._failed

    def open(self, spec: Spec) -> SlotSession:
        """The session for the base of `spec`. Raises NoSession where it cannot be opened."""
        name = shared_name(spec)
        if self.is_new(spec):
            self._try(name, spec)
        if name in self._failed:
            why = self._failed[name]
            raise NoSession("a pack's base", str(why), "it could not be opened in that process", reason=why)
        return self._open[name]

    def all(self) -> list[SlotSession]:
        """Those that are open."""
        return list(self._open.values())

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            self._open.popitem()[1].close()

    def _try(self, name: str, spec: Spec) -> None:
        try:
            self._open[name] = cast("TrainsSlots", load(self._door))(spec, self._slots, self._threads)
        except Exception as error:  # noqa: BLE001 - whatever it is, no trial is to blame
            self._failed[name] = _reason(error)


def is_of_the_device(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the device computes no more in this process."""
    while error is not None:
        if isinstance(error, RuntimeError) and _faults(error) == "device":
            return True
        error = error.__cause__
    return False


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:300]}"


def _reason(error: Exception) -> PetlRayError:
    """What an error says, without the frames that hold what was loaded already."""
    if isinstance(error, PetlRayError):
        return copy(error)
    found, kind = first_line(error), _faults(error)
    if kind == "memory":
        do = "Quantize the base, or choose a bigger machine"
        return CapacityError("memory for the base", found, "it does not fit beside what is there", do)
    if kind == "device":
        return TemporaryError("the device of a pack", found, "its process can use it no more", "Look at it")
    return PermanentError("the base of the search", found, "no session could be opened over it")


def _faults(error: Exception) -> str:
    """What an error of a computation means: memory, device, or neither (empty)."""
    from petl_ray.models.faults import is_device_fault, is_out_of_memory  # torch, which a base has loaded anyway

    if is_out_of_memory(error):
        return "memory"
    return "device" if is_device_fault(error) else ""
