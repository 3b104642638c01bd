"""Failures as errors of ours: whatever breaks one question must not sink its neighbours, nor keep what they hold."""

from __future__ import annotations

import traceback

from petl_ray.errors import CapacityError, PetlRayError, TemporaryError, TrainingError
from petl_ray.models.faults import is_device_fault, is_out_of_memory


def as_failure(what: str, error: Exception) -> PetlRayError:
    """`error` itself where it is one of ours, a CapacityError where memory ran out, a TemporaryError where the device is at
    fault (another process may go on from the newest checkpoint), else a TrainingError of `what`.

    What nobody foresaw has its traceback as a note, which goes to the step's log. The error that comes back holds no
    frames: it lives on beside those who train, and they would hold their tensors.
    """
    ours: PetlRayError
    if isinstance(error, PetlRayError):
        ours = error
    elif is_out_of_memory(error):
        ours = CapacityError(what, "memory ran out", str(error)[:200], "Lower tokens_per_step, or use more memory")
    elif is_device_fault(error):
        do = "Look at the machine's devices if it comes back: what was trained is kept, and goes on in another process"
        ours = TemporaryError(what, f"the device failed: {str(error)[:200]}", "this process can use it no more", do)
    else:
        do = "Train it again alone, or on another machine, to see whose fault it is"
        ours = TrainingError(what, type(error).__name__, str(error)[:500], do)
        ours.add_note("".join(traceback.format_exception(error)))
    if ours is not error:
        ours.__cause__ = error
    return let_go(ours)


def let_go(error: PetlRayError) -> PetlRayError:
    """`error` without the frames that it and what led to it have passed."""
    led: list[BaseException | None] = [error]
    seen: set[int] = set()
    while led:
        link = led.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            led += [link.__cause__, link.__context__]
    return error
