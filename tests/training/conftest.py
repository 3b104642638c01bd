"""What the tests of training have in common: tiny bases that are pinned, and the rows of one task for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from petl_ray.models import LockedBase
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked


@pytest.fixture(scope="session")
def base(tiny_bert: Path) -> LockedBase:
    return locked(tiny_bert)


@pytest.fixture(scope="session")
def moods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a Dataset's files."""
    step = PlainStep(tmp_path_factory.mktemp("moods"))
    return step.fetch(dataset(step))


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def tiny(
    request: pytest.FixtureRequest, tiny_bert: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LockedBase, str, Path]:
    """A tiny base of either kind, its task type, and a directory with sixty rows for it."""
    causal = request.param == "decoder"
    step = PlainStep(tmp_path_factory.mktemp(str(request.param)))
    rows = step.fetch(dataset(step, rows=60, causal=causal))
    return locked(tiny_llama if causal else tiny_bert), "causal_lm" if causal else "classification", rows
