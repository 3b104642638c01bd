"""Two schedulers, one cron line of a minute, real runs: each tick is fired once, and the second has nothing to do."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from petl_ray.orchestration.home import Home
from tests.tinyplan import call, command, surroundings, write_plan


def fired(folder: Path) -> list[dict[str, Any]]:
    (schedule,) = json.loads(call(folder, "schedule", "ls", "--json").stdout)
    return sorted(schedule["firings"], key=lambda one: float(one["tick"]))


@pytest.mark.long
def test_two_schedulers_fire_each_minute_once_and_the_second_firing_computes_nothing(
    tmp_path: Path, tiny_bert: Path
) -> None:
    write_plan(tmp_path, tiny_bert, pipeline="retrain")
    added = call(tmp_path, "schedule", "add", "often", "plan.yaml", "--cron", "* * * * *", "--cluster", "none")
    assert added.returncode == 0, added.stderr
    both = [
        subprocess.Popen(command("scheduler"), cwd=tmp_path, env=surroundings(), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        deadline = time.monotonic() + 240
        while sum(one["state"] == "SUCCEEDED" for one in fired(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(3)
    finally:
        for one in both:
            one.send_signal(signal.SIGINT)
        told = "".join(one.communicate(timeout=30)[1] for one in both)
    assert [one.returncode for one in both] == [0, 0]
    first, second, *_ = fired(tmp_path)
    assert second["tick"] - first["tick"] == 60
    assert [first["state"], second["state"]] == ["SUCCEEDED", "SUCCEEDED"]
    assert told.count(f"{first['run_id']}  RUNNING") == told.count(f"{second['run_id']}  RUNNING") == 1
    runs = {run["id"]: run for run in json.loads(call(tmp_path, "runs", "ls", "--json").stdout)}
    assert runs[first["run_id"]]["steps"] == {"SUCCEEDED": 6}
    assert runs[second["run_id"]]["state"] == "SUCCEEDED"
    assert runs[second["run_id"]]["steps"] == {}, "data, base and plan are those of the first run"
    log = Home.at(tmp_path / ".petl-ray").log_of(second["run_id"], "driver").read_text()
    assert f"nothing to do: data, base and plan are those of run {first['run_id']}" in log
