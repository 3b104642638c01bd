"""The journal database on SQLite and PostgreSQL: schema, clock, transactions, and many who come at once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, func, insert, make_url, select, text, update
from sqlalchemy.exc import IntegrityError

import petl_ray.store.database as module
from petl_ray.errors import CapacityError, CorruptionError, NotFoundError, PermanentError, PlanError, TemporaryError
from petl_ray.store import Database, open_database
from petl_ray.store.migrations import HEAD, VERSION_TABLE
from petl_ray.store.tables import claims, events, metadata, runs, steps

CLAIM = {"owner": "me", "fence": 0, "expires_at": 0.0, "released": 0}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that nobody has opened yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/journal.db"
    server = make_url(request.getfixturevalue("postgres_url"))
    name = f"store_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        conn.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def database(url: str) -> Database:
    return open_database(url)


def test_migrations_build_exactly_the_tables(database: Database) -> None:
    with database.read() as conn:
        context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_newest_migration_is_the_one_that_code_expects() -> None:
    settings = Config()
    settings.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(settings).get_heads() == [HEAD]


def test_opening_again_keeps_what_was_written(database: Database, url: str) -> None:
    with database.begin() as conn:
        conn.execute(insert(claims).values(name="step", **CLAIM))
    with open_database(url).read() as conn:
        assert conn.execute(select(claims.c.name)).scalars().all() == ["step"]


def test_opening_an_up_to_date_database_needs_no_alembic(database: Database, url: str) -> None:
    code = (
        "import sys; from petl_ray.store import open_database\n"
        "open_database(sys.argv[1]); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_many_processes_may_open_a_new_database_at_once(url: str) -> None:
    code = (
        "import sys; from petl_ray.store import open_database; from petl_ray.store.tables import events\n"
        "import alembic.command, psycopg; sys.stdin.read(1)\n"
        "with open_database(sys.argv[1]).begin() as conn:\n"
        "    conn.execute(events.insert().values(run_id='r', at=0.0, event='e', facts={}))\n"
    )
    openers = [subprocess.Popen([sys.executable, "-c", code, url], stdin=-1, stderr=-1, text=True) for _ in range(6)]
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go")
        opener.stdin.flush()
    for opener in openers:
        _, complaint = opener.communicate()
        assert opener.returncode == 0, complaint
    with open_database(url).read() as conn:
        assert conn.execute(select(func.count()).select_from(events)).scalar_one() == 6


def test_a_newer_database_is_refused_and_left_alone(database: Database, url: str) -> None:
    with database.begin() as conn:
        conn.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(PermanentError, match=r"at '9999'.*knows up to .*Upgrade petl-ray"):
        open_database(url)
    with database.read() as conn:
        assert conn.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one() == "9999"


def test_a_database_with_tables_of_others_is_refused_and_left_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE runs (theirs INTEGER)"))
    with pytest.raises(PermanentError, match="tables that are not ours"):
        open_database(url)
    with engine.connect() as conn:
        assert engine.dialect.get_table_names(conn) == ["runs"], "a failed migration leaves nothing behind"
    engine.dispose()


def test_the_clock_is_the_databases_own_and_moves_within_a_transaction(database: Database) -> None:
    with database.begin() as conn:
        first = database.now(conn)
        time.sleep(0.02)
        second = database.now(conn)
        conn.execute(insert(claims).values(name="s", **{**CLAIM, "expires_at": database.clock + 15.0}))
        expires = conn.execute(select(claims.c.expires_at)).scalar_one()
    assert abs(first - time.time()) < 60
    assert second > first
    assert 14 < expires - first < 60


def test_a_block_that_raises_is_rolled_back(database: Database) -> None:
    with pytest.raises(KeyError), database.begin() as conn:
        conn.execute(insert(claims).values(name="step", **CLAIM))
        raise KeyError
    with database.read() as conn:
        assert conn.execute(select(claims)).all() == []


def test_what_breaks_a_rule_of_the_schema_stays_the_callers_business(database: Database) -> None:
    with database.begin() as conn:
        conn.execute(insert(claims).values(name="step", **CLAIM))
    with pytest.raises(IntegrityError), database.begin() as conn:
        conn.execute(insert(claims).values(name="step", **CLAIM))
    with pytest.raises(IntegrityError), database.begin() as conn:  # a step of no run
        conn.execute(
            insert(steps).values(run_id="none", name="s", position=0, verb="v", kind="make", label="l", state="RUNNING")
        )


def test_a_run_takes_its_steps_along(database: Database) -> None:
    run = {"pipeline": "p", "plan_digest": "d", "plan": {}, "locked": {}, "state": "RUNNING", "owner": "o"}
    with database.begin() as conn:
        conn.execute(insert(runs).values(id="r", created_at=0.0, **run))
        conn.execute(
            insert(steps).values(run_id="r", name="s", position=0, verb="v", kind="make", label="l", state="RUNNING")
        )
        conn.execute(runs.delete())
        assert conn.execute(select(steps)).all() == []


def _grow(database: Database, conn: Connection) -> None:
    if database.dialect == "postgresql":
        conn.execute(select(claims).with_for_update())
    fence = conn.execute(select(claims.c.fence)).scalar_one()
    conn.execute(update(claims).values(fence=fence + 1))


def test_reading_and_writing_in_one_transaction_loses_no_update(database: Database) -> None:
    with database.begin() as conn:
        conn.execute(insert(claims).values(name="step", **CLAIM))

    def turn(_: int) -> None:
        with database.begin() as conn:
            _grow(database, conn)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(turn, range(64)))
    with database.read() as conn:
        assert conn.execute(select(claims.c.fence)).scalar_one() == 64


def test_a_forked_process_opens_connections_of_its_own(database: Database) -> None:
    with database.begin() as conn:
        conn.execute(insert(claims).values(name="parent", **CLAIM))
    child = os.fork()
    if child == 0:
        done = 1
        try:
            with database.begin() as conn:
                conn.execute(insert(claims).values(name="child", **CLAIM))
            done = 0
        finally:
            os._exit(done)
    assert os.waitpid(child, 0)[1] == 0
    with database.begin() as conn:
        assert set(conn.execute(select(claims.c.name)).scalars()) == {"parent", "child"}


def test_sqlite_is_durable_and_strict(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/journal.db")
    with database.read() as conn:
        found = {
            name: conn.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 15_000}


def test_a_reader_sees_one_moment_and_stops_no_writer(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/journal.db")
    with database.read() as reader:
        assert reader.execute(select(claims)).all() == []
        with database.begin() as conn:
            conn.execute(insert(claims).values(name="step", **CLAIM))
        assert reader.execute(select(claims)).all() == []


def test_a_database_that_others_hold_is_a_temporary_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_S", 0.05)
    database = open_database(f"sqlite:///{tmp_path}/journal.db")
    with (
        database.begin(),
        pytest.raises(TemporaryError, match="others hold its write lock"),
        database.begin(),
    ):
        pass


def test_a_full_disk_is_a_capacity_error(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/journal.db")
    with pytest.raises(CapacityError, match="database or disk is full"), database.begin() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        conn.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        conn.execute(insert(events), [{"run_id": "r", "at": 0.0, "event": "e", "facts": {"x": "y" * 5000}}] * 100)
    with open_database(f"sqlite:///{tmp_path}/journal.db").read() as conn:
        assert conn.execute(select(events)).all() == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"this is no database at all, and longer than a header of SQLite " * 40)
    with pytest.raises(CorruptionError, match="it is no SQLite database"):
        open_database(f"sqlite:///{tmp_path}/journal.db")


def test_a_relative_path_means_one_file_in_every_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = open_database("sqlite:///journal.db")
    assert database.url == f"sqlite:///{tmp_path}/journal.db"
    assert sqlite3.connect(tmp_path / "journal.db").execute(f"SELECT * FROM {VERSION_TABLE}").fetchall() == [(HEAD,)]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense", ""])
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(PlanError, match="Use sqlite:///path"):
        open_database(url)


def test_a_password_is_not_told(postgres_url: str) -> None:
    server = make_url(postgres_url).set(database="nowhere", password="secret-word")
    with pytest.raises(NotFoundError, match="there is no database of that name") as caught:
        open_database(server.render_as_string(hide_password=False))
    assert "secret-word" not in str(caught.value)


def test_a_user_that_is_not_known_is_refused(postgres_url: str) -> None:
    with pytest.raises(PermanentError, match="this user may not do this"):
        open_database(make_url(postgres_url).set(username="nobody_here").render_as_string(hide_password=False))


def test_a_server_that_is_away_is_a_temporary_error() -> None:
    with pytest.raises(TemporaryError, match="it is away"):
        open_database("postgresql://someone@127.0.0.1:9/journal")
