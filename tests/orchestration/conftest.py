"""A home of its own for each test, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest

from petl_ray.orchestration import Home, Placement, Run, start_run

HERE = Placement(name="test", ray="none", cpus=2)


class Starts(Protocol):
    def __call__(self, **more: Any) -> AbstractContextManager[Run]: ...


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


@pytest.fixture(params=["sqlite", "postgresql"])
def either_home(request: pytest.FixtureRequest, home: Home) -> Iterator[Home]:
    """The same home twice: its journal in SQLite, and in a PostgreSQL database of its own."""
    if request.param == "sqlite":
        yield home
        return
    from sqlalchemy import create_engine, make_url, text

    server = make_url(request.getfixturevalue("postgres_url"))
    name = f"orchestration_{abs(hash(str(home.path))) % 10**9}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.execute(text(f"CREATE DATABASE {name}"))
    url = server.set(database=name).render_as_string(hide_password=False)
    yield Home(home.path, home.store_url, url, home.tracking_url)
    engine.dispose()


@pytest.fixture
def start(home: Home) -> Starts:
    return starter(home)


def starter(home: Home) -> Starts:
    """Starts runs in this process; every argument of `start_run` may be given."""

    def begin(**more: Any) -> AbstractContextManager[Run]:
        return start_run(home, **{"pipeline": "test", "locked": {"plan": 1}, "placement": HERE, **more})

    return begin
