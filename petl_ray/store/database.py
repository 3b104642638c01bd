"""The journal database: SQLite (WAL, full fsync) on one machine, PostgreSQL for a cluster, one way to use both.

A process opens it by URL; engines, connections and sessions are never sent anywhere. Opening brings the schema up to
this code's migrations, whoever comes first; a database that is newer than the code is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Float, create_engine, event, func, literal_column, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError
from sqlalchemy.sql.elements import ColumnElement

from petl_ray.errors import PermanentError, PlanError, TemporaryError
from petl_ray.store.complaints import translated
from petl_ray.store.failures import local_failures
from petl_ray.store.migrations import HEAD, VERSION_TABLE

_BUSY_TIMEOUT_S = 15
_BEGIN = "petl_ray_begin"
_HASTY = "BEGIN IMMEDIATE "  # the same to SQLite
_ADVISORY_LOCK = 0x7065746C  # "petl": serialises migrations on PostgreSQL


class Database:
    """A journal database at its newest schema. `engine` is SQLAlchemy Core; safe for threads and after a fork."""

    def __init__(self, url: URL) -> None:
        self.url = url.render_as_string(hide_password=False)
        self.dialect = url.get_backend_name()
        self.engine = _make_engine(url)

    @property
    def clock(self) -> ColumnElement[float]:
        """The database's own time as an SQL expression: seconds since 1970, moving on within a transaction."""
        if self.dialect == "sqlite":
            return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Float)
        return func.extract("epoch", func.clock_timestamp()).cast(Float)

    def now(self, conn: Connection) -> float:
        """The database's own time: seconds since 1970."""
        return float(conn.execute(select(self.clock)).scalar_one())

    @contextmanager
    def begin(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that writes, committed at the end of the block and rolled back if the block raises.

        On SQLite it takes the one write lock at its beginning, so that what is read here is still true when it writes;
        on PostgreSQL it is READ COMMITTED (lock rows, or write with conditions). Raises TemporaryError where the
        database is busy or away, CapacityError where its disk is full; IntegrityError passes untouched.

        With `durable=False` SQLite does not wait for the disk: the commit outlives this process, yet a power loss may
        take the newest of them. That is for rows which a power loss voids anyway or which can be built again.
        """
        with self._connection("BEGIN IMMEDIATE" if durable else _HASTY) as conn, conn.begin():
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads (on SQLite one snapshot, which blocks no writer). Raises as `begin` does."""
        with self._connection("BEGIN") as conn:
            yield conn

    def close(self) -> None:
        """Close the idle connections of this process."""
        self.engine.dispose()

    @contextmanager
    def _connection(self, begin: str) -> Iterator[Connection]:
        """A connection whose transactions begin with `begin` on SQLite ("": there are none); complaints translated."""
        try:
            with self.engine.connect().execution_options(**{_BEGIN: begin}) as conn:
                yield conn
        except DBAPIError as error:
            found = translated(f"database {self.engine.url.render_as_string()}", error)
            if found is None:
                raise
            raise found from error


def open_database(url: str) -> Database:
    """The database at `sqlite:///path` or `postgresql+psycopg://user@host/name`, its schema brought up to date.

    A SQLite file and the directories above it are made where absent. Raises PlanError for another kind of URL,
    PermanentError for a database that is newer than this code or not one of ours, and what `Database.begin` raises.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        directory = Path(str(parsed.database)).parent
        with local_failures("database in", directory):
            directory.mkdir(parents=True, exist_ok=True)
    database = Database(parsed)
    if parsed.get_backend_name() == "sqlite":
        _keep_write_ahead_log(database)
    with database.read() as conn:
        current = _revision(conn)
    if current != HEAD:
        _migrate(database)
    return database


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise PlanError("database", f"got {url!r}", "it is no database URL", "Use sqlite:///path") from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        return parsed
    if parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed.set(database=str(Path(str(parsed.database)).expanduser().absolute()))
    raise PlanError(
        "database",
        f"got {parsed.render_as_string()!r}",
        "the journal lives in a SQLite file or in PostgreSQL",
        "Use sqlite:///path or postgresql+psycopg://user@host/name",
    )


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(url, pool_pre_ping=True, max_overflow=20, connect_args={"connect_timeout": 10})
    event.listen(engine, "connect", _remember_process)
    event.listen(engine, "checkout", _refuse_other_process)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; `_begin_sqlite` does
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(conn: Connection) -> None:
    begin = conn.get_execution_options().get(_BEGIN, "BEGIN")
    if begin.startswith("BEGIN IMMEDIATE"):  # said anew each time: a pooled connection may have served the other kind
        conn.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if begin == _HASTY else 'FULL'}")
    if begin:
        conn.exec_driver_sql(begin)


def _remember_process(_: Any, record: Any) -> None:
    record.info["process"] = os.getpid()


def _refuse_other_process(_: Any, record: Any, proxy: Any) -> None:
    """A connection opened before a fork belongs to the parent: the child leaves it alone and opens its own."""
    if record.info["process"] != os.getpid():
        record.dbapi_connection = proxy.dbapi_connection = None
        raise DisconnectionError("this connection was opened by another process")


def _keep_write_ahead_log(database: Database) -> None:
    """Switch the file to WAL, which it stays. SQLite does not wait for others here, so this does."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            with database._connection("") as conn:
                conn.exec_driver_sql("PRAGMA journal_mode=WAL")
            return
        except TemporaryError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _revision(conn: Connection) -> str | None:
    if not conn.dialect.has_table(conn, VERSION_TABLE):
        return None
    return conn.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one_or_none()


def _migrate(database: Database) -> None:
    """Run the migrations that are missing, in one transaction, one process at a time."""
    from alembic import command, config, script
    from alembic.util import CommandError

    settings = config.Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = {entry.revision for entry in script.ScriptDirectory.from_config(settings).walk_revisions()}
    with database.begin() as conn:
        if database.dialect == "postgresql":
            conn.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        current = _revision(conn)
        if current is not None and current not in known:
            raise PermanentError(
                f"database {database.engine.url.render_as_string()}",
                f"its schema is at {current!r}; this petl-ray knows up to {HEAD!r}",
                "a newer petl-ray has been here",
                "Upgrade petl-ray, or use another database",
            )
        settings.attributes["connection"] = conn
        try:
            command.upgrade(settings, "head")
        except (CommandError, DBAPIError) as error:
            if isinstance(error, DBAPIError) and translated("", error) is not None:
                raise
            raise PermanentError(
                f"database {database.engine.url.render_as_string()}",
                f"its schema could not be brought from {current!r} to {HEAD!r}: {error}",
                "it holds tables that are not ours, or was changed by hand",
                "Use an empty database",
            ) from error
