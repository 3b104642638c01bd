"""What a plan takes along to a cluster: its own files, its includes, its data and its placement — and nothing else.

Only these travel, so that a submission is small and its id follows from what was submitted. They are found there by the
words that found them here, so those words must lead below the working directory on both sides.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from petl_ray.errors import PlanError
from petl_ray.fingerprint import sha256_file, sha256_of
from petl_ray.plan import Plan
from petl_ray.plan.document import plan_files
from petl_ray.plan.reading import read_plan

_WILD = "*?["


def travelling(
    plan_path: Path, root: Path, settings: Iterable[str], tasks: Iterable[str], cluster: Path | None
) -> list[Path]:
    """The local files that `petl-ray run` will open, as paths below `root`, the working directory.

    Raises PlanError for one that lies elsewhere, or that is named in a way that would lead elsewhere there.
    """
    plan = read_plan(plan_path, settings, tasks)
    found = {_below(root, path, str(path)) for path in [*plan_files(plan_path), *([cluster] if cluster else [])]}
    for key, source in _sources(plan):
        path = Path(source).expanduser()
        inside = _below(root, path, f"{key}: {source}")
        if path.is_absolute():
            do = f"Write {inside}"
            raise PlanError(f"{key}: {source}", "is absolute", "on the cluster that is another place", do)
        found.update(file.relative_to(root) for file in _files(root / inside))
    for file in found:
        if not (root / file).is_file():
            raise PlanError(str(file), "no such file", do="Check the path in the plan")
    return sorted(found)


def _sources(plan: Plan) -> Iterator[tuple[str, str]]:
    """What the plan reads from disk, by key path: data, and the base if it is a directory."""
    base = plan.base.source  # an absolute one that is not here may well be there
    if ":" not in base and (Path(base).is_dir() or base.startswith((".", "~"))):
        yield "base.source", base
    for name, task in plan.tasks.items():
        for side in ("train", "validation", "test"):
            source = getattr(task.data, side)
            if source is not None and ":" not in source:
                yield f"tasks.{name}.data.{side}", source


def _below(root: Path, path: Path, what: str) -> Path:
    """`path` below `root` as it is written; PlanError if it leaves `root` anywhere on its way."""
    whole = root / path
    depth = 0
    for part in whole.relative_to(root).parts if whole.is_relative_to(root) else ("..",):
        depth += -1 if part == ".." else 1
        if depth < 0:
            raise PlanError(
                what, f"lies outside {root}", "only files below the working directory can travel",
                "Copy it below the working directory and name the copy",
            )  # fmt: skip
    return whole.relative_to(root)


def _files(path: Path) -> list[Path]:
    """The file itself, all files of a directory, or those that a path with wildcards finds."""
    if path.is_dir():
        return sorted(one for one in path.rglob("*") if one.is_file())
    if path.exists() or not any(sign in str(path) for sign in _WILD):
        return [path]
    return sorted(one for one in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if one.is_file()) or [path]


def digest_of(files: Iterable[Path], root: Path, words: Iterable[str]) -> str:
    """sha256 (hex) over the files' names and bytes and the words of the command."""
    return sha256_of({"files": [[str(path), sha256_file(root / path)] for path in files], "words": list(words)})


def pack(files: Iterable[Path], root: Path, into: Path) -> Path:
    """Copy the files to the same places below `into`."""
    for path in files:
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, into / path)
    return into
