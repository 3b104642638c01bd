"""One small plan for all, one undisturbed run to compare with, drivers that leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from petl_ray.orchestration import Home
from tests.chaos.driving import Drivers
from tests.chaos.plans import write_placement, write_plan, write_tasks
from tests.chaos.reading import outcomes, the_run


@dataclass(frozen=True)
class Site:
    """Where the rows lie, the plan over them, and the placement that does everything in the driver's process."""

    directory: Path
    base: Path
    plan: Path
    in_process: Path
    on_ray: Path


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Site:
    directory = tmp_path_factory.mktemp("chaos")
    write_tasks(directory)
    plan = write_plan(directory, tiny_bert, "small")
    return Site(directory, tiny_bert, plan, write_placement(directory, "none"), write_placement(directory, "local"))


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    """Drivers that start a Ray of their own where they need one."""
    started = Drivers(tmp_path)
    yield started
    started.sweep()


@pytest.fixture
def joining(tmp_path: Path, ray_cluster: str) -> Iterator[Drivers]:
    """Drivers that join the cluster of this test run, which outlives them."""
    started = Drivers(tmp_path, ray_cluster)
    yield started
    started.sweep()


@pytest.fixture(scope="session")
def undisturbed(site: Site, tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> dict[str, str]:
    """The digests, by label, of a run that nobody killed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    started = Drivers(directory, ray_cluster)
    try:
        driver = started.run(site.plan, directory / "home", site.in_process)
        assert driver.process.returncode == 0, driver.said
    finally:
        started.sweep()
    home = Home.at(directory / "home")
    return outcomes(home, the_run(home)["id"])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")
