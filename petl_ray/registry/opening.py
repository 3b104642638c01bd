"""One process at a time opens an MLflow database: two that make its tables at once leave it half made.

MLflow runs its migrations when a database is first used, and does not lock them against other processes.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from sqlalchemy import create_engine, func, make_url, select

_ADVISORY_LOCK = 0x6D6C666C  # "mlfl"


@contextmanager
def opening_alone(uri: str) -> Iterator[None]:
    """Hold the lock on opening the MLflow database at `uri`; a tracking server's address needs none."""
    if uri.startswith(("http://", "https://")):
        yield
    elif uri.startswith("postgresql"):
        with _advisory_lock(uri):
            yield
    else:
        with _file_lock(uri):
            yield


@contextmanager
def _file_lock(uri: str) -> Iterator[None]:
    # A file of this user's in the temporary directory: beside the database it would be one more file to explain.
    name = sha256(uri.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"petl-ray-mlflow-{os.getuid()}-{name}.lock"
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # given back when the file is closed, also by a process that dies
        yield


@contextmanager
def _advisory_lock(uri: str) -> Iterator[None]:
    engine = create_engine(make_url(uri))
    try:
        with engine.connect() as connection, connection.begin():
            connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            yield
    finally:
        engine.dispose()
