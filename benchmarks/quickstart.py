"""The quickstart plan from text to served champions: in packs as the project ships it, and without packs, one adapter a
process at a time. The same command in a fresh home each, the same code, one after the other."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.code import digest_of, sources
from benchmarks.questions import ROOT
from benchmarks.rows import Row, spread
from benchmarks.tree import Watch
from benchmarks.units import Unit, Units
from petl_ray.fingerprint import sha256_file, sha256_of

PLAN, PLACE = ROOT / "configs" / "quickstart.yaml", ROOT / "cluster" / "local.yaml"
ALONE = "defaults.search.engine=solo"
ONE_SLOT = ("search", "train", "evaluate")  # verbs that are given one, without packs
CONTESTANTS = ("packs", "alone")
SAME = 1e-6  # scores that are no further apart are equal, rounded
ELSEWHERE = ("PETL_RAY_HOME", "PETL_RAY_STORE", "PETL_RAY_DATABASE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")


def measure(quick: bool, again: bool, rounds: int = 1) -> Iterator[Row]:
    """The row: seconds of the whole command, imports, the start of Ray and its end included. There is no quicker way.

    Both are run before either is told, and must come to the same scores of the same recipes, with all champions
    answering. With several rounds every other one begins with the other.
    """
    units = Units("quickstart", again)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for turn in range(rounds):
        for name in CONTESTANTS[:: -1 if turn % 2 else 1]:
            unit = Unit("quickstart", "quickstart", 0, name, turn, _question(name), sources())
            found[name].append(units.facts(unit, partial(_ran, name)))
    note = equal([facts for turns in found.values() for facts in turns])
    ours, theirs = ([float(facts["wall_s"]) for facts in found[name]] for name in CONTESTANTS)
    mine, other = statistics.median(ours), statistics.median(theirs)
    what = "packs as shipped against one adapter a process at a time"
    figure = f"quickstart, seconds of the whole command in a fresh home, from text to served champions: {what}"
    note = f"{note}; judging and serving put adapters side by side in both"
    yield Row(figure, "s", round(mine, 1), round(other, 1), round(other / mine, 2), spread(ours), len(ours), note=note)


def equal(found: Sequence[Mapping[str, Any]]) -> str:
    """What is equal among the facts of some runs, in words; raises AssertionError where scores differ by more than
    rounding, or somebody was not put forward, or does not answer."""
    first = found[0]
    for facts in found:
        scores, others = facts["scores"], first["scores"]
        assert scores.keys() == others.keys(), f"other scores: {sorted(scores.keys() ^ others.keys())}"
        apart = {name: (score, others[name]) for name, score in scores.items() if abs(score - others[name]) > SAME}
        assert not apart, f"the runs do not come to the same: {apart}"
        assert facts["champions"] == first["champions"] == facts["answers"] != [], f"not all champions answer: {facts}"
    same = all(facts["adapters"] == first["adapters"] for facts in found)
    return f"equal scores, adapters of {'equal' if same else 'unequal'} digests"


def _question(name: str) -> str:
    """A digest of what is run, and of all that is read beside the project's own sources."""
    files = [PLAN, PLACE, *sorted((ROOT / "examples" / "data").glob("*.jsonl"))]
    read = {path.name: sha256_file(path) for path in files}
    return sha256_of([name, ALONE, list(ONE_SLOT), read, digest_of(ROOT / "pipelines")])[:16]


def _ran(name: str) -> dict[str, Any]:
    """One run as a user's: seconds, processor seconds of all its processes, and what it came to."""
    with tempfile.TemporaryDirectory(prefix="petl-ray-bench-", ignore_cleanup_errors=True) as folder:
        plan = str(PLAN.relative_to(ROOT))
        command = [sys.executable, "-m", "petl_ray.cli", "run", plan, "--json", "--home", f"{folder}/home"]
        if name == "alone":
            command += ["--set", ALONE]
        command += ["--cluster", str(one_slot(Path(folder)) if name == "alone" else PLACE)]
        out, err = Path(folder) / "out", Path(folder) / "err"
        with out.open("w") as told, err.open("w") as said:
            began = time.perf_counter()
            process = subprocess.Popen(command, stdout=told, stderr=said, cwd=ROOT, env=_environment())
            with Watch(process.pid) as watch:
                process.wait()
                wall_s = time.perf_counter() - began
            watch.end()
        if process.returncode:
            raise RuntimeError(f"quickstart, {name}: exit code {process.returncode}:\n{err.read_text()[-4000:]}")
        return {"wall_s": round(wall_s, 2), "cpu_s": round(watch.cpu_s, 2), **outcome(json.loads(out.read_text()))}


def _environment() -> dict[str, str]:
    """That of `make demo`, and nothing that would let a run find what another one kept."""
    plain = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    return {"OMP_NUM_THREADS": "1", **plain, "TOKENIZERS_PARALLELISM": "false"}


def one_slot(folder: Path) -> Path:
    """The shipped placement with one slot a process, written into `folder`."""
    place = yaml.safe_load(PLACE.read_text(encoding="utf-8"))
    for verb in ONE_SLOT:
        place["verbs"][verb] = {**place["verbs"].get(verb, {}), "slots": 1}
    path = folder / "one-slot.yaml"
    path.write_text(yaml.safe_dump(place), encoding="utf-8")
    return path


def outcome(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `petl-ray run --json` says: scores by task and recipe, digests of the candidates, who is champion, who
    answered."""
    tasks = summary["tasks"]
    return {
        "scores": {f"{task['task']}/{role}": one["value"] for task in tasks for role, one in task["scores"].items()},
        "adapters": {task["task"]: task["adapter_digest"] for task in tasks},
        "champions": sorted(task["task"] for task in tasks if task["status"] == "champion"),
        "answers": sorted(summary["samples"]),
    }
