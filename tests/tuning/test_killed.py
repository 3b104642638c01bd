"""A search whose driver is killed for real, several times, on a cluster that outlives it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.plainstep import PlainStep
from tests.tuning.fake_training.asking import rows

pytestmark = pytest.mark.long


def start(address: str, root: Path, scheduler: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tuning.fake_training.one_search", address, str(root), scheduler]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def facts(root: Path) -> list[str]:
    return sorted(key for key in PlainStep(root).recorded() if "/" in key)


def outcome(address: str, root: Path, scheduler: str) -> dict[str, object]:
    out, _ = start(address, root, scheduler).communicate(timeout=150)
    found: dict[str, object] = json.loads(out.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize(("scheduler", "kills"), [("asha", (2, 7)), ("pbt", (10, 18))])
def test_a_driver_killed_mid_rung_resumes_to_the_same_digest(
    ray_cluster: str, tmp_path: Path, scheduler: str, kills: tuple[int, int]
) -> None:
    roots = [tmp_path / "whole", tmp_path / "killed"]
    for root in roots:
        (root / "dataset.json").parent.mkdir()
        (root / "dataset.json").write_text(rows(PlainStep(root)).model_dump_json())
    whole = outcome(ray_cluster, roots[0], scheduler)
    for wanted in kills:
        driver = start(ray_cluster, roots[1], scheduler)
        deadline_s = time.monotonic() + 100
        while len(facts(roots[1])) < wanted and time.monotonic() < deadline_s:
            time.sleep(0.05)
        driver.kill()
        driver.wait()
    before = facts(roots[1])
    resumed = outcome(ray_cluster, roots[1], scheduler)
    assert len(before) >= kills[-1] and resumed["digest"] == whole["digest"]
    assert resumed["replayed_rungs"] == len(before)
    assert int(str(resumed["trained_rungs"])) + len(before) == whole["trained_rungs"]
