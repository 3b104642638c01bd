"""What the operating system says of a disk, in the words of this project."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from petl_ray.errors import CapacityError, PermanentError, PetlRayError, TemporaryError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BUSY = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE}


@contextmanager
def local_failures(what: str, directory: Path) -> Iterator[None]:
    """Turn an OSError of the block into CapacityError, PermanentError or TemporaryError about `what` at `directory`."""
    try:
        yield
    except OSError as error:
        raise _translated(what, directory, error) from error


def _translated(what: str, directory: Path, error: OSError) -> PetlRayError:
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return CapacityError(
            f"{what} {directory}", reason, "nothing more can be written there", "Free space or move it"
        )
    if error.errno in _REFUSED:
        return PermanentError(
            f"{what} {directory}", reason, "this process may not write there", "Choose a directory that it may write"
        )
    if error.errno in _BUSY:
        return TemporaryError(f"{what} {directory}", reason, "the disk does not answer as it should")
    return PermanentError(f"{what} {directory}", reason, do="Choose another directory")
