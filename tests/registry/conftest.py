"""What tests of the registry share: one MLflow database for the session, small adapters and reports, fresh journals."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from petl_ray.artifact import Adapter, Interval, Release, Report, Trial
from petl_ray.spec import Pinned
from petl_ray.store import Database, open_database
from tests.plainstep import PlainStep


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


ASKED_BY = {"run": "run-1", "plan": sha("plan"), "verbs": "prepare 1, train 2"}


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database whose tables are made (that takes seconds), to be copied."""
    from petl_ray.registry.tracking import Tracking

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracking(f"sqlite:///{path}").find("nobody", "0" * 64)
    return path


@pytest.fixture
def home(tmp_path: Path, mlflow_template: Path) -> Path:
    """A home directory with an empty MLflow database."""
    shutil.copyfile(mlflow_template, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def tracking(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


@pytest.fixture
def database_url(home: Path) -> str:
    return f"sqlite:///{home / 'journal.db'}"


@pytest.fixture
def database(database_url: str) -> Database:
    return open_database(database_url)


@pytest.fixture(params=["sqlite", "postgres"])
def each_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh journal on SQLite, then on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'journal.db'}"
        return
    yield fresh_postgres(request.getfixturevalue("postgres_url"))


def fresh_postgres(url: str) -> str:
    """The URL of a new, empty database on the server behind `url`."""
    from sqlalchemy import create_engine, make_url, text

    name = f"t{uuid.uuid4().hex[:16]}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"create database {name}"))
    engine.dispose()
    return make_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def world(step: PlainStep, home: Path, tracking: str, database_url: str) -> Callable[[str], PlainStep]:
    """Steps of one run by name, with the services an effect needs."""

    def step_named(name: str) -> PlainStep:
        places = {"tracking": tracking, "home": str(home), "database": database_url}
        return PlainStep(step.root, name=sha(name), services={**places, **ASKED_BY})

    return step_named


def make_adapter(step: PlainStep, task: str = "emails", seed: int = 0) -> Adapter:
    """An adapter of two small files; which weights they hold does not matter to the registry."""
    (step.out / "adapter_model.safetensors").write_bytes(f"weights {task} {seed}".encode())
    (step.out / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return Adapter(
        task=task,
        task_type="classification",
        labels=("bug", "refund", "praise"),
        method="lora",
        base=Pinned(uri="package:somewhere", digest=sha("base")),
        precision="fp32",
        trained_parameters=1000,
        base_parameters=100_000,
        validation_score=0.9,
        files=step.keep("adapter_model.safetensors", "adapter_config.json"),
        about={"seconds": 1.5 + seed},
    )


def make_report(
    adapter: Adapter, *, over_head: float = 0.05, champion: Adapter | None = None, over_champion: float = 0.0
) -> Report:
    """A report whose paired lower bounds are 0.02 below the differences named."""

    def near(value: float) -> Interval:
        return Interval(value=value, low=value - 0.02, high=value + 0.02)

    rivals = {"majority": near(0.4), "head_only": near(0.9 - over_head)}
    differences = {"majority": near(0.5), "head_only": near(over_head)}
    digests = {"head_only": sha("head")}
    if champion is not None:
        rivals["champion"] = near(0.9 - over_champion)
        differences["champion"] = near(over_champion)
        digests["champion"] = champion.digest
    return Report(
        task=adapter.task,
        adapter_digest=adapter.digest,
        dataset_digest=sha("data"),
        metric="accuracy",
        mode="max",
        rows=300,
        scores={"accuracy": near(0.9), "macro_f1": near(0.88)},
        rivals=rivals,
        differences=differences,
        rival_digests=digests,
    )


def make_trial() -> Trial:
    """The winner of a search."""
    return Trial(
        overrides={"method.rank": 16, "learning_rate": 0.003},
        number=4,
        metric="accuracy",
        mode="max",
        score=0.92,
        default_score=0.9,
        trials=8,
    )


def make_release(step: PlainStep, version: int, task: str = "emails", seed: int | None = None) -> Release:
    """A registered release, as `register` would give it."""
    adapter = make_adapter(step, task, version if seed is None else seed)
    return Release(task=task, version=version, adapter=adapter, about={"model": f"petl-ray.{task}"})
