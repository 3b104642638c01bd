"""Which records count, which give way, and which are left alone because somebody else may still need them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Artifact, Dataset, FileEntry
from petl_ray.errors import ConflictError, CorruptionError, NotFoundError, PetlRayError
from petl_ray.fingerprint import sha256_of
from petl_ray.orchestration import Home, records, runs
from petl_ray.orchestration.home import opened
from petl_ray.store import Store, open_store
from petl_ray.store.local import LocalStore
from tests.orchestration.conftest import Starts
from tests.orchestration.verbs import CountSpec, copy, count, lines

NAME = "a" * 64
KEY = records.record_key(NAME)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def tally(tmp_path: Path) -> str:
    return str(tmp_path / "tally")


def outcome(store: Store, data: bytes = b"rows\n") -> Dataset:
    entry = FileEntry(path="train.jsonl", sha256=store.put_bytes(data), size_bytes=len(data))
    return Dataset(task="t", task_type="classification", rows={"train": 1}, files=(entry,))


def written(store: Store, attempt: str = "me", data: bytes = b"rows\n") -> bytes:
    return records.compose(store, NAME, "prepare", outcome(store, data), attempt)


def object_key(artifact: Artifact) -> str:
    sha256 = artifact.files[0].sha256
    return f"objects/{sha256[:2]}/{sha256}"


def changed(record: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(record), **changes}).encode()


@pytest.mark.parametrize("torn", [b"", b"{", b"no JSON", b"\xff"])
def test_a_torn_record_gives_way(store: Store, torn: bytes) -> None:
    store.write(KEY, torn)
    assert records.find(store, NAME) is None
    assert records.create(store, NAME, written(store)).attempt == "me"
    assert records.find(store, NAME) is not None


def test_a_record_whose_bytes_have_changed_gives_way(store: Store) -> None:
    record = written(store, "them")
    store.write(KEY, record.replace(b'"t"', b'"u"'))
    assert records.find(store, NAME) is None
    assert records.create(store, NAME, written(store)).attempt == "me"


def test_a_record_from_before_records_had_a_format_is_read(store: Store) -> None:
    told = json.loads(written(store, "them"))
    del told["format"]
    store.write(KEY, json.dumps(told).encode())
    assert records.create(store, NAME, written(store)).attempt == "them"


def _of_a_newer_artifact(record: bytes) -> bytes:
    manifest = json.loads(record)["manifest"]
    manifest["artifact"]["invented_later"] = 1
    return changed(record, manifest=manifest, manifest_sha256=sha256_of(manifest))


@pytest.mark.parametrize(
    ("rewrite", "found"),
    [
        (lambda record: changed(record, format=2), "format 2, where this petl-ray reads 1"),
        (lambda record: changed(record, format=2, manifest="elsewhere"), "format 2, where this petl-ray reads 1"),
        (_of_a_newer_artifact, "its artifact: Extra inputs are not permitted"),
        (lambda record: b"[]", "it lacks what a record holds"),
    ],
)
def test_what_another_petl_ray_wrote_is_refused_and_never_replaced(
    store: Store, rewrite: Callable[[bytes], bytes], found: str
) -> None:
    foreign = rewrite(written(store, "them"))
    store.write(KEY, foreign)
    for act in (lambda: records.find(store, NAME), lambda: records.create(store, NAME, written(store))):
        with pytest.raises(ConflictError) as refused:
            act()
        assert (refused.value.what, refused.value.found) == (f"store record {KEY}", found)
        assert "Use that version" in refused.value.do
    assert store.read(KEY) == foreign


class Raced(LocalStore):
    """A store in which a rival puts its own record in place of the stale one just before anybody else can."""

    rival: Callable[[], bytes] | None = None

    def replace(self, key: str, old: bytes, new: bytes) -> bytes | None:
        if self.rival is not None:
            super().write(key, self.rival())
        return super().replace(key, old, new)

    def delete(self, key: str) -> None:
        if self.rival is not None:
            super().write(key, self.rival())
        super().delete(key)


def test_a_rivals_good_record_that_took_the_place_of_a_stale_one_is_adopted(tmp_path: Path) -> None:
    store = Raced(tmp_path / "store")
    lost = outcome(store, b"lost\n")
    store.create(KEY, records.compose(store, NAME, "prepare", lost, "stale"))
    store.delete(object_key(lost))
    mine, rivals = written(store, "me"), written(store, "rival")
    store.rival = lambda: rivals
    assert records.create(store, NAME, mine).attempt == "rival"
    assert store.read(KEY) == rivals


@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_a_truncated_file_is_no_hit_and_is_made_anew(
    start: Starts, home: Home, tally: str, damage: bytes | None
) -> None:
    spec = CountSpec(number=4, tally=tally)
    with start() as run:
        first = run.make(count, spec)
    store = opened(home).store
    whole = (run.fetch(first) / "train.jsonl").read_bytes()
    store.write(object_key(first), whole[:-1] if damage is None else damage)
    with start(locked={"plan": 2}) as again:
        assert again.make(count, spec).digest == first.digest
    assert len(lines(tally)) == 2
    assert store.read(object_key(first)) == whole


def _bitten(store: Store, artifact: Artifact) -> None:
    data = store.read(object_key(artifact)) or b""
    store.write(object_key(artifact), data[:-2] + b"?" + data[-1:])


def _lost(store: Store, artifact: Artifact) -> None:
    store.delete(object_key(artifact))


@pytest.mark.parametrize(("harm", "kind"), [(_bitten, CorruptionError), (_lost, NotFoundError)])
def test_a_file_that_turns_out_torn_or_lost_fails_the_step_that_reads_it_and_is_made_anew_by_the_next_run(
    start: Starts, home: Home, tally: str, harm: Callable[[Store, Artifact], None], kind: type[PetlRayError]
) -> None:
    spec = CountSpec(number=4, tally=tally)
    with pytest.raises(kind) as caught, start() as run:
        first = run.make(count, spec)
        harm(opened(home).store, first)
        run.make(copy, spec, first)
    assert str(caught.value).startswith(f"dataset {first.digest[:12]}: file train.jsonl: ")
    assert str(caught.value).endswith("Run the plan again: the step that made it is computed anew.")
    with start() as again:
        again.make(copy, spec, again.make(count, spec))
    assert {one["state"] for one in runs.show(home, again.id)["steps"]} == {"SUCCEEDED"}
    assert lines(tally) == ["count-4", "copy-4", "count-4", "copy-4"]
