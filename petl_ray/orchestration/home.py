"""Where everything that outlives a process lies: home directory, store, journal database, MLflow's tracking.

A `Home` is a small value of addresses that travels to workers; `opened` turns it into open things, once per process.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from petl_ray.errors import CapacityError, PermanentError
from petl_ray.store import Database, Store, open_database, open_store


@dataclass(frozen=True)
class Home:
    """Addresses: the home directory of the driver, and the URLs of store, journal database and MLflow tracking."""

    path: Path
    store_url: str
    database_url: str
    tracking_url: str

    @classmethod
    def at(cls, path: str | Path | None = None) -> Home:
        """The home at `path`, else at `PETL_RAY_HOME`, else `.petl-ray` here.

        `PETL_RAY_STORE`, `PETL_RAY_DATABASE` and `MLFLOW_TRACKING_URI` move its parts elsewhere (a bucket, PostgreSQL,
        a tracking server); secrets in them stay out of every file of ours.
        """
        root = Path(path or os.environ.get("PETL_RAY_HOME") or ".petl-ray").expanduser().absolute()
        return cls(
            path=root,
            store_url=os.environ.get("PETL_RAY_STORE") or (root / "store").as_uri(),
            database_url=os.environ.get("PETL_RAY_DATABASE") or f"sqlite:///{root / 'journal.db'}",
            tracking_url=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}",
        )

    @property
    def is_local(self) -> bool:
        """Whether the store is a directory, so that the home is this machine's (or a shared disk)."""
        return "://" not in self.store_url or self.store_url.startswith("file:")

    @property
    def scratch(self) -> Path:
        """Where this machine works and caches: the home if it is local, else a directory of this user's own."""
        if self.is_local:
            return self.path
        return Path(tempfile.gettempdir()) / f"petl-ray-{getpass.getuser()}"

    @property
    def cache(self) -> Path:
        """Where fetched files lie, verified and shared by the processes of this machine."""
        return self.scratch / "cache"

    def log_of(self, run_id: str, step: str) -> Path:
        """The log of one step of one run on this machine."""
        return self.scratch / "logs" / run_id / f"{step}.log"

    def services(self, run_id: str) -> Mapping[str, str]:
        """What an effect may touch, by name: `database`, `store`, `tracking`, `home`, and the `run` it is for."""
        return {
            "database": self.database_url,
            "store": self.store_url,
            "tracking": self.tracking_url,
            "home": str(self.path),
            "run": run_id,
        }


@dataclass(frozen=True)
class Opened:
    """A home whose store and journal are open in this process."""

    home: Home
    store: Store
    database: Database


@lru_cache(maxsize=8)
def _opened(home: Home, process_id: int) -> Opened:
    try:
        home.scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = CapacityError if error.errno == 28 else PermanentError
        raise kind(
            f"home {home.scratch}",
            str(error.strerror),
            "nothing can be kept there",
            "Set PETL_RAY_HOME to a directory you own",
        ) from error
    return Opened(home, open_store(home.store_url), open_database(home.database_url))


def opened(home: Home) -> Opened:
    """The open store and journal of `home`, the same for every caller in this process (a fork opens its own)."""
    return _opened(home, os.getpid())
