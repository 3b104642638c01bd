"""The tables of the journal database, on SQLite and PostgreSQL alike. Times are seconds since 1970 on its own clock.

`runs` and `steps` say what happened, `claims` who works on what, `facts` what a step remembered, `events` what people
were shown; `names` and `promotions` are the truth about which adapter a task's name means; `schedules` and `firings`
when runs start. The migrations in `petl_ray/store/migrations` build exactly these.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

_SERIAL = BigInteger().with_variant(Integer, "sqlite")

runs = Table(
    "runs",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("pipeline", String(80), nullable=False),
    Column("plan_digest", String(64), nullable=False),
    Column("plan", JSON, nullable=False),  # the plan as read, for people
    Column("locked", JSON, nullable=False),  # the locked plan, which resume uses
    Column("state", String(16), nullable=False),  # PENDING RUNNING SUCCEEDED FAILED CANCELLED (RESUMABLE is derived)
    Column("owner", String(200), nullable=False),  # who pays and who is asked
    Column("cancel_requested", Integer, nullable=False, default=0),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("summary", JSON),
    Column("error", JSON),
    Column("placement", JSON),  # where it runs, which `runs resume` uses again; never identity
    Index("ix_runs_plan_digest_state", "plan_digest", "state"),
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", String(80), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),  # fingerprint for make and pack, idempotency key for do
    Column("position", Integer, nullable=False),
    Column("verb", String(40), nullable=False),
    Column("kind", String(8), nullable=False),  # make | do
    Column("label", String(200), nullable=False),  # for people: `train emails/default`
    Column("state", String(16), nullable=False),  # PENDING RUNNING SUCCEEDED FAILED CANCELLED
    Column("hit", Integer, nullable=False, default=0),  # 1: found, not computed by this run
    Column("attempts", Integer, nullable=False, default=0),
    Column("outcome", JSON),  # the artifact
    Column("outcome_digest", String(64)),
    Column("error", JSON),
    Column("question", JSON),  # verb identity, spec identity, input digests: why a later run misses
    Column("why", Text),  # why it was a miss, for people
    Column("started_at", Float),
    Column("ended_at", Float),
    Index("ix_steps_verb_label", "verb", "label"),
)

claims = Table(
    "claims",
    metadata,
    Column("name", String(120), primary_key=True),  # a step's fingerprint, `run:ID`, `tick:SCHEDULE:TIME`
    Column("owner", String(200), nullable=False),
    Column("fence", BigInteger, nullable=False),  # grows by one with each new owner
    Column("expires_at", Float, nullable=False),
    Column("released", Integer, nullable=False, default=0),
)

facts = Table(
    "facts",
    metadata,
    Column("step", String(64), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("recorded_at", Float, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("run_id", String(80), nullable=False),
    Column("step", String(64)),
    Column("at", Float, nullable=False),
    Column("event", String(80), nullable=False),
    Column("facts", JSON, nullable=False),
    Index("ix_events_run_id_id", "run_id", "id"),
)

names = Table(
    "names",
    metadata,
    Column("task", String(120), primary_key=True),
    Column("alias", String(60), primary_key=True),  # champion
    Column("adapter_digest", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("promotion_id", BigInteger, nullable=False),  # compare-and-set on this
    Column("changed_at", Float, nullable=False),
)

promotions = Table(
    "promotions",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("key", String(120), nullable=False),  # idempotency key: asking twice is one promotion
    Column("task", String(120), nullable=False),
    Column("alias", String(60), nullable=False),
    Column("action", String(16), nullable=False),  # promote | refuse | rollback | propose
    Column("adapter_digest", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("release", JSON, nullable=False),  # the Release artifact: serving reads its files from here
    Column("previous_digest", String(64)),
    Column("previous_version", Integer),
    Column("actor", String(200), nullable=False),
    Column("run_id", String(80)),
    Column("reasons", JSON, nullable=False),  # sentences and figures: why
    Column("projected", Integer, nullable=False, default=0),  # 1: MLflow's alias agrees
    Column("at", Float, nullable=False),
    UniqueConstraint("key"),
    Index("ix_promotions_task_id", "task", "id"),
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("cron", String(120), nullable=False),
    Column("timezone", String(60), nullable=False),
    Column("plan_path", Text, nullable=False),
    Column("options", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)

firings = Table(
    "firings",
    metadata,
    Column("schedule", String(120), primary_key=True),
    Column("tick", Float, primary_key=True),
    Column("run_id", String(80), nullable=False),
    Column("state", String(16), nullable=False),  # RUNNING SUCCEEDED FAILED SKIPPED
    Column("fired_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("note", Text),
)
