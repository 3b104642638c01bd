"""Claims by name on the database's clock: who works on what, until when, under which fencing token.

A claim lives while its owner beats; one that expired, was released or belongs to a process known to be dead may be
taken by anybody, and its fence grows by one. The old owner finds out at its next write, which checks the
fence in the same transaction, and parks. Claims do not wait for the disk: what could lose them ends their owners too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from petl_ray.errors import ClaimLost
from petl_ray.orchestration.owner import Owner
from petl_ray.store import Database
from petl_ray.store.tables import claims

LASTS_S = 15.0
BEAT_S = 3.0


@dataclass(eq=False)
class Claim:
    """A name held by an owner under a fence. `lost` is set as soon as anybody notices that it is not ours any more."""

    name: str
    owner: Owner
    fence: int
    lost: threading.Event = field(default_factory=threading.Event)

    def check(self, conn: Connection) -> None:
        """Make sure that the claim is still ours, for the rest of a write transaction too; raises ClaimLost."""
        row = conn.execute(
            select(claims.c.fence, claims.c.owner).where(claims.c.name == self.name).with_for_update()
        ).one_or_none()
        if row is None or row.fence != self.fence or row.owner != str(self.owner):
            self.lost.set()
        if self.lost.is_set():
            raise claim_lost(self.name)

    def release(self, conn: Connection) -> None:
        """Give the name back, if it is still ours, so that nobody has to wait for its expiry."""
        conn.execute(update(claims).where(claims.c.name == self.name, claims.c.fence == self.fence).values(released=1))


def claim_lost(name: str) -> ClaimLost:
    """The error of an owner whose name has gone to somebody else."""
    return ClaimLost(
        f"claim {name[:80]}", "another process holds it now", "this one was away for too long", "Nothing: it parks"
    )


def take(
    database: Database, conn: Connection, names: Iterable[str], owner: Owner, lasts_s: float = LASTS_S
) -> dict[str, Claim]:
    """Claim every one of `names` that is free, inside the transaction `conn`; what others hold is left out."""
    wanted = sorted(set(names))  # one order for everybody, so that two claimants cannot lock each other out
    now = database.now(conn)
    taken: dict[str, Claim] = {}
    for name in wanted:
        blank = {"name": name, "owner": "", "fence": 0, "expires_at": 0.0, "released": 1}
        insert_if_absent(conn, claims, blank)
        row = conn.execute(select(claims).where(claims.c.name == name).with_for_update()).one()
        if not _is_free(row, now):
            continue
        fence = int(row.fence) + 1
        conn.execute(
            update(claims)
            .where(claims.c.name == name)
            .values(owner=str(owner), fence=fence, expires_at=now + lasts_s, released=0)
        )
        taken[name] = Claim(name, owner, fence)
    return taken


def beat(database: Database, held: Iterable[Claim], lasts_s: float = LASTS_S) -> None:
    """Push the expiry of all claims that are still ours; marks the others as lost."""
    living = [claim for claim in held if not claim.lost.is_set()]
    if not living:
        return
    with database.begin(durable=False) as conn:
        expires_at = database.now(conn) + lasts_s
        for claim in sorted(living, key=lambda one: one.name):
            done = conn.execute(
                update(claims)
                .where(
                    claims.c.name == claim.name, claims.c.fence == claim.fence, claims.c.owner == bindparam("is_owner")
                )
                .values(expires_at=expires_at),
                {"is_owner": str(claim.owner)},
            )
            if done.rowcount == 0:
                claim.lost.set()


def is_free(database: Database, name: str) -> bool:
    """Whether `name` could be claimed now: never claimed, released, expired, or its owner is known to be dead."""
    with database.read() as conn:
        row = conn.execute(select(claims).where(claims.c.name == name)).one_or_none()
        return row is None or _is_free(row, database.now(conn))


def holders(database: Database, conn: Connection, names: Iterable[str]) -> dict[str, str]:
    """The living owners of `names`, as `host pid`, by name; free names are left out."""
    now = database.now(conn)
    rows = conn.execute(select(claims).where(claims.c.name.in_(list(names)))).all()
    living = {row.name: Owner.parse(row.owner) for row in rows if not _is_free(row, now)}
    return {name: f"{owner.host} pid {owner.pid}" if owner else "somebody" for name, owner in living.items()}


def insert_if_absent(conn: Connection, table: Table, row: dict[str, Any]) -> None:
    """Insert `row` unless one with its primary key stands there."""
    dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
    conn.execute(dialect.insert(table).values(row).on_conflict_do_nothing())


def _is_free(row: Any, now: float) -> bool:
    if row.released or row.expires_at <= now:
        return True
    owner = Owner.parse(row.owner)
    return owner is not None and owner.is_known_dead
