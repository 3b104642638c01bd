"""A fetched directory holds exactly the files asked for, verified, read-only, and is shared by many."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from petl_ray.artifact import FileEntry
from petl_ray.errors import CorruptionError, NotFoundError
from petl_ray.store import Store, fetch_files

FILES = {"adapter.safetensors": b"w" * 300_000, "sub/card.json": b"{}", "sub/copy.json": b"{}"}


@pytest.fixture
def entries(store: Store) -> list[FileEntry]:
    return [FileEntry(path=path, sha256=store.put_bytes(data), size_bytes=len(data)) for path, data in FILES.items()]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_files_lie_there_read_only(store: Store, entries: list[FileEntry], tmp_path: Path) -> None:
    directory = fetch_files(store, entries, tmp_path / "cache")
    assert contents(directory) == FILES
    assert {oct(path.stat().st_mode & 0o777) for path in directory.rglob("*")} == {"0o444", "0o555"}


def test_equal_entries_share_a_directory_and_others_do_not(
    store: Store, entries: list[FileEntry], tmp_path: Path
) -> None:
    first = fetch_files(store, entries, tmp_path)
    assert fetch_files(store, entries[::-1], tmp_path) == first
    assert fetch_files(store, entries[:1], tmp_path) != first
    assert len(list(tmp_path.glob("[!.]*/adapter.safetensors"))) == 2


def test_a_directory_that_verifies_needs_no_store(store: Store, entries: list[FileEntry], tmp_path: Path) -> None:
    directory = fetch_files(store, entries, tmp_path / "cache")
    for key in store.list("objects/"):
        store.delete(key)
    assert fetch_files(store, entries, tmp_path / "cache") == directory


@pytest.mark.parametrize("damage", [b"", b"w" * 299_999 + b"x"])
def test_a_directory_that_was_damaged_is_filled_again(
    store: Store, entries: list[FileEntry], tmp_path: Path, damage: bytes
) -> None:
    directory = fetch_files(store, entries, tmp_path / "cache")
    (directory / "adapter.safetensors").chmod(0o644)
    (directory / "adapter.safetensors").write_bytes(damage)
    assert fetch_files(store, entries, tmp_path / "cache") == directory
    assert contents(directory) == FILES
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [directory.name], "nothing is left aside"


def test_no_files_are_an_empty_directory(store: Store, tmp_path: Path) -> None:
    assert contents(fetch_files(store, [], tmp_path)) == {}


def test_what_cannot_be_fetched_leaves_nothing(store: Store, entries: list[FileEntry], tmp_path: Path) -> None:
    store.write(f"objects/{entries[0].sha256[:2]}/{entries[0].sha256}", b"torn")
    with pytest.raises(CorruptionError):
        fetch_files(store, entries, tmp_path / "cache")
    missing = FileEntry(path="x", sha256="0" * 64, size_bytes=1)
    with pytest.raises(NotFoundError):
        fetch_files(store, [missing], tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_many_threads_fetch_one_directory(store: Store, entries: list[FileEntry], tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        directories = set(pool.map(lambda _: fetch_files(store, entries, tmp_path / "cache"), range(12)))
    assert len(directories) == 1
    assert contents(directories.pop()) == FILES
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_many_processes_fetch_one_directory(store: Store, entries: list[FileEntry], tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from petl_ray.store import open_store, fetch_files\n"
        "from petl_ray.artifact import FileEntry\n"
        "entries = [FileEntry(**entry) for entry in json.loads(sys.argv[2])]\n"
        "print(fetch_files(open_store(sys.argv[1]), entries, Path(sys.argv[3])))"
    )
    asked = "[" + ",".join(entry.model_dump_json() for entry in entries) + "]"
    command = [sys.executable, "-c", code, store.url, asked, str(tmp_path / "cache")]
    fetchers = [subprocess.Popen(command, stdout=-1, text=True, env=os.environ) for _ in range(3)]
    told = {fetcher.communicate()[0].strip() for fetcher in fetchers}
    assert [fetcher.returncode for fetcher in fetchers] == [0, 0, 0]
    assert len(told) == 1
    assert contents(Path(told.pop())) == FILES
