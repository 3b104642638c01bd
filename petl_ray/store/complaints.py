"""What SQLite and PostgreSQL complain of, in the words of this project."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, IntegrityError

from petl_ray.errors import CapacityError, CorruptionError, NotFoundError, PermanentError, PetlRayError, TemporaryError

_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_REFUSED = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")
_BROKEN = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

# https://www.postgresql.org/docs/current/errcodes-appendix.html, by class or whole code
_POSTGRES_BUSY = ("08", "40001", "40P01", "53200", "53300", "55P03", "57P", "57014")
_POSTGRES_REFUSED = ("28", "25006", "42501")


def translated(what: str, error: DBAPIError) -> PetlRayError | None:
    """The error of our family that `error` means; None for what is the caller's own business (constraints, SQL)."""
    if isinstance(error, IntegrityError):
        return None
    found = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    name = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return _of_sqlite(what, found, name)
    code = getattr(error.orig, "sqlstate", None)
    if code is not None:
        return _of_postgres(what, found, code)
    if type(error.orig).__name__ == "OperationalError":  # psycopg could not connect, or the connection broke
        return _without_connection(what, found)
    return None


def _of_sqlite(what: str, found: str, name: str) -> PetlRayError | None:
    if name.startswith(_BUSY):
        return TemporaryError(what, found, "others hold its write lock")
    if name == "SQLITE_FULL":
        return CapacityError(what, found, "nothing more can be written there", "Free space or move it")
    if name.startswith(_REFUSED):
        return PermanentError(what, found, "this process may not write there", "Choose a place that it may write")
    if name.startswith(_BROKEN):
        return CorruptionError(what, found, "it is no SQLite database, or a damaged one", "Restore it from a copy")
    if name.startswith("SQLITE_IOERR"):
        return PermanentError(what, f"{found} ({name})", "the disk under it failed or is full", "Check the disk")
    return None


def _of_postgres(what: str, found: str, code: str) -> PetlRayError | None:
    if code.startswith(_POSTGRES_BUSY):
        return TemporaryError(what, found, "it is busy or restarting")
    if code == "53100":
        return CapacityError(what, found, "its disk is full", "Free space")
    if code == "3D000":
        return NotFoundError(what, found, "there is no database of that name", "Create it")
    if code.startswith(_POSTGRES_REFUSED):
        return PermanentError(what, found, "this user may not do this", "Check user, password and rights")
    return None


def _without_connection(what: str, found: str) -> PetlRayError:
    """libpq says by text alone why it could not connect."""
    if "does not exist" in found and "database" in found:
        return NotFoundError(what, found, "there is no database of that name", "Create it")
    if "authentication failed" in found or "does not exist" in found or "no pg_hba.conf entry" in found:
        return PermanentError(what, found, "this user may not do this", "Check user, password and rights")
    return TemporaryError(what, found, "it is away", "Check its address and that it runs")
