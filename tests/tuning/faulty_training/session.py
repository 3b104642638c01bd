"""Slots as in `tests.tuning.fake_training`, over a base that cannot always be opened and a device that may break.

`faults` of a spec names a directory. A file `base` there lets no process open the base; each file `base-…` is one attempt
that fails. So is `device-…` for one trial that is let in: its process can let in nobody afterwards. `odd-…` is the same
with an error that names no device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

from petl_ray.errors import BaseModelError
from petl_ray.spec import NOT_IDENTITY, Spec
from tests.tuning.fake_training.session import MiniSession
from tests.tuning.fake_training.spec import MiniSpec


class FaultySpec(MiniSpec):
    faults: Annotated[str, NOT_IDENTITY] = ""


def lay(directory: Path, fault: str, times: int | None = None) -> str:
    """Let `fault` happen so many times, or for ever; returns the directory as a spec names it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in [fault] if times is None else [f"{fault}-{count}" for count in range(times)]:
        (directory / name).touch()
    return str(directory)


def happens(fault: str, spec: Spec) -> bool:
    faults = cast("FaultySpec", spec).faults
    if not faults:
        return False
    for once in sorted(Path(faults).glob(f"{fault}-*")):
        try:
            once.unlink()
        except FileNotFoundError:  # another process met that one
            continue
        return True
    return (Path(faults) / fault).exists()


ERRORS = {"device": RuntimeError("CUDA error: device-side assert triggered"), "odd": KeyError("no such kernel")}


class FaultySession(MiniSession):
    broken: Exception | None = None  # this process

    def admit(self, key: str, spec: Spec, data: Path, checkpoint: Path | None = None) -> None:
        for fault, error in ERRORS.items():
            if happens(fault, spec):
                FaultySession.broken = error
        if FaultySession.broken is not None:
            raise FaultySession.broken
        super().admit(key, spec, data, checkpoint)


def open_session(spec: Spec, slots: int, threads: int) -> FaultySession:
    if happens("base", spec):
        raise BaseModelError("hub:nobody/base", "the hub does not give it", "its directory is missing", "Fetch it")
    return FaultySession(slots)
