"""The names that serving follows: which adapter a task means today, read from the journal database, never guessed.

Reads only. A row whose release does not carry the adapter that the row names is left out and reported.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pydantic import ValidationError
from sqlalchemy import Select, select

from petl_ray.artifact import Adapter, Release, parse_artifact
from petl_ray.errors import NotFoundError, PlanError
from petl_ray.fingerprint import sha256_of
from petl_ray.models.spec import LockedBase, TaskType
from petl_ray.spec import Spec
from petl_ray.store import Database, open_database
from petl_ray.store.tables import names, promotions

ALIAS = "champion"
SERVABLE = ("promote", "rollback")  # a refused or merely proposed release never answers
_MODEL = re.compile(r"(?P<task>[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,119})(?:@(?P<digest>[0-9a-f]{12,64}))?")


class Group(Spec):
    """What adapters must share to be answered by one replica: the base's bytes, its precision and the kind of model."""

    base: LockedBase
    task_type: TaskType

    @cached_property
    def key(self) -> str:
        """A short name for this group, the same in every process."""
        return sha256_of(self)[:12]


@dataclass(frozen=True)
class Named:
    """An adapter that a promotion row names: its task, its version and the adapter itself."""

    task: str
    version: int
    promotion_id: int
    digest: str
    adapter: Adapter

    @cached_property
    def group(self) -> Group:
        """The replicas that can answer it."""
        base = LockedBase(
            pinned=self.adapter.base, precision=self.adapter.precision, quantization=self.adapter.quantization
        )
        return Group(base=base, task_type=self.adapter.task_type)

    @property
    def model(self) -> str:
        """Its immutable name: `task@digest`."""
        return f"{self.task}@{self.digest}"


@dataclass(frozen=True)
class Model:
    """What a request asks for: a task by name, or one digest of it (at least its first 12 hex digits)."""

    task: str
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Model:
        """`task` or `task@digest`; raises PlanError for anything else, before it reaches any path or query."""
        if not (match := _MODEL.fullmatch(text)):
            raise PlanError(
                "model",
                f"got {text[:80]!r}",
                "a model is a task, or task@ and 12 to 64 hex digits of an adapter's digest",
                "See GET /v1/models",
            )
        return cls(match["task"], match["digest"])


class Catalogue:
    """Read access to the names and the promotions behind them; one per process, opened by URL."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._database: Database | None = None
        self._rows_read: dict[int, Named] = {}
        self._by_model: dict[str, Named] = {}

    def names(self) -> tuple[dict[str, Named], dict[str, str]]:
        """(task → what its name means now, task → why its row cannot be trusted), from one transaction.

        Raises TemporaryError where the database is away.
        """
        query = (
            select(promotions, names.c.adapter_digest.label("named"))
            .join(names, names.c.promotion_id == promotions.c.id)
            .where(names.c.alias == ALIAS)
        )
        found: dict[str, Named] = {}
        odd: dict[str, str] = {}
        for row in self._rows(query):
            try:
                named = self._read(row)
                if named.digest != row["named"]:
                    raise ValueError("the name and its promotion disagree about the digest")
                found[named.task] = named
            except ValueError as trouble:
                odd[row["task"]] = f"promotion {row['id']}: {trouble}"
        return found, odd

    async def resolve(self, model: Model) -> Named:
        """`find` off the event loop; free for a whole digest that was seen before, for its bytes never change."""
        if known := self._by_model.get(f"{model.task}@{model.digest}"):
            return known
        return await asyncio.to_thread(self.find, model)

    def find(self, model: Model) -> Named:
        """The adapter that was promoted for `model.task` under `model.digest` (or its beginning), now or earlier.

        Raises NotFoundError if none was, PlanError if the beginning fits several.
        """
        digest = model.digest or ""
        query = select(promotions).where(
            promotions.c.task == model.task,
            promotions.c.action.in_(SERVABLE),
            promotions.c.adapter_digest.startswith(digest, autoescape=True),
        )
        rows = {row["adapter_digest"]: row for row in self._rows(query.order_by(promotions.c.id))}
        if len(rows) > 1:
            raise PlanError(
                "model", f"got {digest}", f"{len(rows)} adapters of {model.task} begin so", "Give more digits"
            )
        for row in rows.values():
            try:
                return self._read(row)
            except ValueError as trouble:
                raise NotFoundError("model", f"got {model.task}@{digest}", str(trouble)) from trouble
        raise NotFoundError(
            "model", f"got {model.task}@{digest}", "no adapter of that digest was ever promoted", "See GET /v1/models"
        )

    def _rows(self, query: Select) -> list[dict]:  # type: ignore[type-arg]
        if self._database is None:
            self._database = open_database(self._url)
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _read(self, row: dict) -> Named:  # type: ignore[type-arg]
        """The promotion row as a value; ValueError if its release is not what the row says. Rows never change."""
        if row["id"] not in self._rows_read:
            try:
                release = parse_artifact(row["release"])
            except ValidationError as error:
                raise ValueError(f"its release cannot be read ({error.error_count()} errors)") from error
            if not isinstance(release, Release) or release.adapter.digest != row["adapter_digest"]:
                raise ValueError("its release does not carry the adapter that it names")
            named = Named(row["task"], row["version"], row["id"], row["adapter_digest"], release.adapter)
            self._rows_read[row["id"]] = named
            if row["action"] in SERVABLE:
                self._by_model[named.model] = named
        return self._rows_read[row["id"]]


def near(wanted: str, known: Iterable[str]) -> str:
    """What to choose instead of an unknown name: the nearest known ones, or all there are."""
    known = sorted(known)
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    if close or known:
        return f"Choose {' or '.join(close or known[:20])}"
    return "Promote an adapter first: nothing is served yet"
