"""What a plan takes along to a cluster: its own files, its includes, its data and its placement — and nothing else.

Only these travel, so that a submission is small and its id follows from what was submitted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from petl_ray.errors import PlanError
from petl_ray.fingerprint import sha256_file, sha256_of
from petl_ray.plan.document import plan_files
from petl_ray.plan.reading import read_plan


def travelling(
    plan_path: Path, root: Path, settings: Iterable[str], tasks: Iterable[str], cluster: Path | None
) -> list[Path]:
    """The local files that `petl-ray run` will open, as paths below `root`; PlanError for one that lies elsewhere."""
    plan = read_plan(plan_path, settings, tasks)
    wanted = [*plan_files(plan_path), *([cluster] if cluster else [])]
    for task in plan.tasks.values():
        for source in (task.data.train, task.data.validation, task.data.test):
            if source is not None and ":" not in source:
                wanted += sorted(Path().glob(source)) if "*" in source else [Path(source)]
    if ":" not in plan.base.source and Path(plan.base.source).is_dir():
        wanted += sorted(path for path in Path(plan.base.source).rglob("*") if path.is_file())
    found = []
    for path in wanted:
        whole = path.absolute()
        if not whole.is_relative_to(root):
            raise PlanError(
                str(path), f"lies outside {root}", "only files below the working directory can travel", "Copy it"
            )
        if not whole.is_file():
            raise PlanError(str(path), "no such file", do="Check the path in the plan")
        found.append(whole.relative_to(root))
    return sorted(set(found))


def digest_of(files: Iterable[Path], root: Path, words: Iterable[str]) -> str:
    """sha256 (hex) over the files' names and bytes and the words of the command."""
    return sha256_of({"files": [[str(path), sha256_file(root / path)] for path in files], "words": list(words)})


def pack(files: Iterable[Path], root: Path, into: Path) -> Path:
    """Copy the files to the same places below `into`."""
    for path in files:
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, into / path)
    return into
