"""One law for all stores: content-addressed objects, records created once, nothing visible before it is whole."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from petl_ray.errors import CorruptionError, NotFoundError, PermanentError, PlanError
from petl_ray.store import Store, open_store
from petl_ray.store.local import LocalStore

DATA = b"adapter weights " * 200_000  # more than a chunk


def test_a_store_is_opened_again_by_its_url(store: Store) -> None:
    sha256 = store.put_bytes(DATA)
    assert open_store(store.url).has(sha256, len(DATA))
    assert open_store(store.url).url == store.url


def test_a_plain_path_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("some where").url == (tmp_path / "some where").as_uri()
    assert open_store((tmp_path / "some where").as_uri()).url == (tmp_path / "some where").as_uri()


@pytest.mark.parametrize("url", ["", "http://somewhere", "s3://", "file://elsewhere/x"])
def test_another_kind_of_url_is_refused(url: str) -> None:
    with pytest.raises(PlanError, match=r"Use file:///dir or s3://bucket/prefix"):
        open_store(url)


def test_a_file_is_kept_under_its_sha256(store: Store, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(DATA)
    sha256, size_bytes = store.put(tmp_path / "w")
    assert (sha256, size_bytes) == (hashlib.sha256(DATA).hexdigest(), len(DATA))
    assert store.put(tmp_path / "w") == (sha256, size_bytes)
    assert store.put_bytes(DATA) == sha256
    assert store.list("objects/") == [f"objects/{sha256[:2]}/{sha256}"]
    store.get(sha256, tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == DATA


def test_nothing_is_an_object_too(store: Store, tmp_path: Path) -> None:
    store.get(store.put_bytes(b""), tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_an_object_that_nobody_kept_is_not_found(store: Store, tmp_path: Path) -> None:
    assert not store.has("0" * 64, 0)
    with pytest.raises(NotFoundError, match="not in the store"):
        store.get("0" * 64, tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []


@pytest.mark.parametrize("damage", [DATA[:-1], DATA[:100], b"", b"X" + DATA[1:]])
def test_an_object_that_was_torn_or_changed_never_arrives(store: Store, tmp_path: Path, damage: bytes) -> None:
    sha256 = store.put_bytes(DATA)
    store.write(f"objects/{sha256[:2]}/{sha256}", damage)
    with pytest.raises(CorruptionError, match="torn or changed"):
        store.get(sha256, tmp_path / "here" / "copy")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_torn_object_is_healed_by_keeping_it_again(store: Store, tmp_path: Path) -> None:
    sha256 = store.put_bytes(DATA)
    store.write(f"objects/{sha256[:2]}/{sha256}", DATA[:10])
    assert store.put_bytes(DATA) == sha256
    store.get(sha256, tmp_path / "copy")


@pytest.mark.parametrize("damage", [DATA[:-1], b""])
def test_a_truncated_object_is_not_there(store: Store, damage: bytes) -> None:
    sha256 = store.put_bytes(DATA)
    assert store.has(sha256, len(DATA))
    store.write(f"objects/{sha256[:2]}/{sha256}", damage)
    assert not store.has(sha256, len(DATA))


def test_a_changed_object_is_discarded_and_kept_anew_and_a_good_one_stays(store: Store, tmp_path: Path) -> None:
    sha256 = store.put_bytes(DATA)
    store.discard(sha256)
    assert store.has(sha256, len(DATA))
    store.write(f"objects/{sha256[:2]}/{sha256}", b"X" + DATA[1:])
    with pytest.raises(CorruptionError) as torn:
        store.get(sha256, tmp_path / "copy")
    assert torn.value.extra == {"sha256": sha256}
    store.discard(sha256)
    assert not store.has(sha256, len(DATA))
    assert store.put_bytes(DATA) == sha256
    store.get(sha256, tmp_path / "copy")
    store.discard("0" * 64)


def test_a_record_is_replaced_only_where_exactly_the_old_bytes_stand(store: Store) -> None:
    assert store.replace("record", b"old", b"new") is None
    store.create("record", b"old")
    assert store.replace("record", b"other", b"new") == b"old"
    assert store.replace("record", b"old", b"new") == b"new"
    assert store.replace("record", b"old", b"late") == b"new"
    assert store.read("record") == b"new"


def test_of_many_that_replace_a_record_exactly_one_does(store: Store) -> None:
    store.create("record", b"old")
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda number: store.replace("record", b"old", b"%d" % number), range(24)))
    assert set(told) == {store.read("record")}


def test_the_first_creator_wins_and_the_second_is_told(store: Store) -> None:
    assert store.read("steps/x/record.json") is None
    assert store.create("steps/x/record.json", b"first") == b"first"
    assert store.create("steps/x/record.json", b"second") == b"first"
    assert store.create("steps/x/record.json", b"first") == b"first"
    assert store.read("steps/x/record.json") == b"first"


def test_of_many_threads_exactly_one_creates(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda number: store.create("race", b"%d" % number), range(24)))
    assert set(told) == {store.read("race")}


def test_of_many_processes_exactly_one_creates(store: Store) -> None:
    code = (
        "import sys; from petl_ray.store import open_store\n"
        "store = open_store(sys.argv[1]); sys.stdin.read(1)\n"
        "for round in range(20): print(store.create(f'race/{round}', sys.argv[2].encode()).decode())"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, store.url, name], stdin=-1, stdout=-1, text=True, env=os.environ)
        for name in ("a", "b", "c")
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go")
        racer.stdin.flush()
    told = [racer.communicate()[0].split() for racer in racers]
    assert told[0] == told[1] == told[2]
    assert told[0] == [str(store.read(f"race/{round_}"), "ascii") for round_ in range(20)]


def test_writing_replaces_what_stands(store: Store) -> None:
    store.write("pointer", b"one")
    store.write("pointer", b"two")
    assert store.read("pointer") == b"two"


def test_readers_see_the_old_bytes_or_the_new(store: Store) -> None:
    old, new = b"a" * 300_000, b"b" * 300_000
    store.write("pointer", old)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(lambda: [store.write("pointer", data) for data in (new, old) * 10])
        seen = {store.read("pointer") for _ in range(30)}
        writing.result()
    assert seen <= {old, new}


def test_keys_are_listed_by_prefix_in_order(store: Store) -> None:
    for key in ("steps/b/2", "steps/b/1", "steps/a/1", "stepsister", "other"):
        store.write(key, b"")
    assert store.list("steps/") == ["steps/a/1", "steps/b/1", "steps/b/2"]
    assert store.list("steps/b") == ["steps/b/1", "steps/b/2"]
    assert store.list("steps") == ["steps/a/1", "steps/b/1", "steps/b/2", "stepsister"]
    assert store.list("nothing/") == []
    assert len(store.list("")) == 5


def test_more_keys_than_one_page_are_all_listed(s3_url: str) -> None:
    store = open_store(s3_url)
    for number in range(1005):
        store.write(f"many/{number:04d}", b"")
    assert len(store.list("many/")) == 1005


def test_deleting_is_done_twice_without_harm(store: Store) -> None:
    store.write("gone", b"x")
    store.delete("gone")
    store.delete("gone")
    assert store.read("gone") is None
    assert store.create("gone", b"new") == b"new"


@pytest.mark.parametrize(
    "key", ["../x", "/x", "a//b", "", ".hidden", "a/..", "a/.tmp", "a\0b", "a/" + "x" * 300, "a\nb"]
)
def test_a_key_with_tricks_is_refused(store: Store, key: str) -> None:
    acts = (lambda it: store.write(it, b""), lambda it: store.create(it, b""), lambda it: store.replace(it, b"", b""))
    for act in (store.read, store.delete, *acts):
        with pytest.raises(PermanentError, match="store key"):
            act(key)


def test_a_name_that_is_no_sha256_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="64 hex digits"):
        store.get("../../etc/passwd", tmp_path / "copy")


def test_a_local_store_leaves_no_stray_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.create("a", b"1")
    store.create("a", b"2")
    store.write("a", b"3")
    store.put_bytes(b"4")
    store.put_bytes(b"4")
    assert list((tmp_path / "store" / ".tmp").iterdir()) == []


def test_a_local_store_keeps_no_directory_of_what_was_deleted(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    for number in range(3):
        store.write(f"steps/a/progress/{number}/files/rows", DATA)
    store.write("steps/b/manifest.json", b"{}")
    for key in store.list("steps/a/"):
        store.delete(key)
    there = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if ".tmp" not in path.parts}
    assert there == {"steps", "steps/b", "steps/b/manifest.json"}


def test_a_directory_that_others_remove_does_not_stop_who_writes_there(tmp_path: Path) -> None:
    """Deleting the last file of a directory removes it, perhaps in the moment in which another makes it."""
    store, rounds = LocalStore(tmp_path / "store"), 200

    def write(number: int) -> None:
        for turn in range(rounds):
            store.write(f"steps/a/progress/{number}", b"%d" % turn)
            store.delete(f"steps/a/progress/{number}")
        store.write(f"steps/a/progress/{number}", b"last")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [store.read(key) for key in store.list("steps/")] == [b"last"] * 4
