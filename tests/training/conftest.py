"""What the tests of training have in common: a tiny base that is pinned, and the rows of one task."""

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
