"""The smaller parts: placement, reasons of misses, checkpoints, retries, errors as JSON."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from petl_ray.errors import CapacityError, DataError, PermanentError, PlanError, TemporaryError
from petl_ray.orchestration import Placement, load_placement, progress
from petl_ray.orchestration.failures import as_ours, from_json, to_json
from petl_ray.orchestration.placement import VerbResources, check_capacity
from petl_ray.orchestration.retry import patiently, pause_s
from petl_ray.orchestration.verbs import VERBS
from petl_ray.orchestration.why import why_miss
from petl_ray.store import Store, open_store
from petl_ray.verb import Resources, Verb

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize("name", ["local.yaml", "remote.yaml"])
def test_the_placements_of_the_project_load(name: str) -> None:
    placement = load_placement(CLUSTER / name)
    assert placement.resources("search").packs >= 1
    assert placement.resources("never heard of").cpus == 1


def test_auto_is_filled_from_the_cores_there_are() -> None:
    placement = Placement(verbs={"search": VerbResources(cpus=2, packs="auto"), "train": VerbResources(cpus="auto")})
    assert placement.resources("search", [{"CPU": 9.0}]).packs == 4
    assert placement.resources("search", [{"CPU": 1.0}]).packs == 1
    assert placement.resources("train", [{"CPU": 9.0}]).cpus == 9


def test_auto_lets_no_process_span_two_machines() -> None:
    asked = {"search": VerbResources(cpus=3, packs="auto"), "train": VerbResources(cpus="auto")}
    four = [{"CPU": 5.0}, {"CPU": 5.0}, {"CPU": 2.0}, {"GPU": 1.0}]
    assert Placement(verbs=asked).resources("search", four).packs == 2
    assert Placement(verbs=asked).resources("train", four).cpus == 5
    assert Placement(verbs=asked, cpus=4).resources("search", four).packs == 1
    assert Placement(verbs=asked, cpus=4).resources("train", four).cpus == 4


def test_packs_share_gpus_as_they_are_placed_and_slots_are_bounded_by_what_pays() -> None:
    halves = VerbResources(gpus=0.5, packs="auto", slots="auto")
    there = Placement(verbs={"search": halves, "train": VerbResources(slots="auto")})
    machines = [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}]
    given = there.resources("search", machines)
    assert (given.packs, given.slots, given.slots_by_memory) == (6, 64, True)
    check_capacity("search", given, True, machines)
    assert (there.resources("train").slots, there.resources("evaluate").slots_by_memory) == (8, False)
    with pytest.raises(ValidationError):
        VerbResources(slots=0)


def test_a_wrong_placement_is_named_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("verbs:\n  train: {cpu: 2}\n")
    with pytest.raises(PlanError, match=r"verbs\.train\.cpu"):
        load_placement(path)
    with pytest.raises(PlanError, match=r"odd\.yaml"):
        load_placement(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (
            "verbs: {search: {packs: -3}}",
            "verbs.search.packs: got -3; input should be greater than or equal to 1. Choose 1",
        ),
        ("verbs: {search: {packs: 0}}", "verbs.search.packs: got 0;"),
        ("verbs: {search: {cpus: -1}}", "verbs.search.cpus: got -1;"),
        ("cpus: 0", "cpus: got 0;"),
        ("gpus: -1", "gpus: got -1;"),
        (
            "verbs: {search: {slots: auot}}",
            "slots: got 'auot'; a whole number or 'auto' is wanted here. Did you mean auto?",
        ),
        ("verbs: {search: {slotz: 4}}", "verbs.search.slotz: unknown key. Did you mean slots?"),
        ("[1, 2]", "got a list; a mapping is wanted here"),
    ],
)
def test_a_placement_that_makes_no_sense_is_refused_in_words(tmp_path: Path, written: str, told: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(written)
    with pytest.raises(PlanError) as caught:
        load_placement(path)
    assert str(caught.value).startswith(f"placement {path}") and told in str(caught.value)
    assert "constrained" not in str(caught.value)


def test_what_is_given_to_a_verb_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"verbs\.serch: no such verb; there are .*\. Did you mean search\?"):
        Placement(verbs={"serch": VerbResources()})
    path = tmp_path / "odd.yaml"
    path.write_text("verbs:\n  serch: {cpus: 2}\n")
    with pytest.raises(PlanError, match=r"odd\.yaml: verbs\.serch: no such verb; .*\. Did you mean search\?"):
        load_placement(path)
    path.write_text("verbs:\n  bake: {cpus: 2}\n")
    with pytest.raises(PlanError, match=r"verbs\.bake: no such verb; there are prepare, search, .* or use default\.$"):
        load_placement(path)


def test_every_verb_that_a_room_shows_at_its_door_may_be_placed() -> None:
    rooms = ("data", "tuning", "training", "evaluation", "registry", "serving")
    doors = [import_module(f"petl_ray.{room}") for room in rooms]
    shown = {one.name for door in doors for one in vars(door).values() if isinstance(one, Verb)}
    assert {verb.name for verb in VERBS} == shown
    Placement(verbs={name: VerbResources() for name in shown})


def test_what_must_run_at_the_same_time_counts_together() -> None:
    pack = Resources(cpus=1, packs=4)
    two = [{"CPU": 2.0}]
    check_capacity("train", pack, False, two)
    with pytest.raises(CapacityError, match="asks for 4"):
        check_capacity("search", pack, True, two)
    with pytest.raises(CapacityError, match="gpus"):
        check_capacity("train", Resources(gpus=1), False, two)


def test_one_process_must_fit_on_one_machine() -> None:
    cluster = [{"CPU": 5.0, "GPU": 2.0}, {"CPU": 5.0}]
    check_capacity("train", Resources(cpus=5, workers=2), False, cluster)
    check_capacity("train", Resources(gpus=0.5, workers=4), False, cluster)
    for asked, told in (
        (Resources(cpus=8), r"cpus: asks for 8 in one process; the largest machine has 5"),
        (Resources(gpus=3), r"gpus: asks for 3 in one process; the largest machine has 2"),
        (Resources(cpus=3, workers=3), r"asks for 3 processes of 3 cpus and 0 gpus at once; 2 fit on the 2 machines"),
        (Resources(cpus=3, gpus=1, workers=2), r"asks for 2 processes of 3 cpus and 1 gpus at once; 1 fit"),
        (Resources(gpus=0.6, workers=3), r"asks for 3 processes of 1 cpus and 0.6 gpus at once; 2 fit"),
    ):
        with pytest.raises(CapacityError, match=told):
            check_capacity("train", asked, False, cluster)


def test_a_reason_names_versions_inputs_and_fields() -> None:
    def ask(version: int, inner: int, digest: str, rate: float) -> dict[str, object]:
        used = {"train": {"name": "train", "version": inner, "using": {}}}
        return {
            "verb": {"name": "search", "version": version, "using": used},
            "spec": {"rate": rate, "base": {"digest": digest}},
            "inputs": [{"kind": "dataset", "digest": digest}],
        }

    before = ask(1, 1, "a", 0.1)
    assert why_miss(before, None) == "first time"
    assert why_miss(ask(2, 1, "a", 0.1), before) == "verb search v1 -> v2"
    assert why_miss(ask(1, 3, "a", 0.1), before) == "verb train v1 -> v3"
    assert why_miss(ask(1, 1, "b", 0.1), before) == "dataset changed; spec.base: its content changed"
    assert why_miss(ask(1, 1, "a", 0.2), before) == "spec.rate 0.1 -> 0.2"
    assert why_miss(before, before) == "its outcome is gone from the store"


def test_the_newest_checkpoint_that_verifies_wins_whoever_wrote_it(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    saved = tmp_path / "saved"
    (saved / "deep").mkdir(parents=True)

    owners = {fence: progress.Saves(store, "s", "verb", fence) for fence in (1, 2)}

    def save(fence: int, text: str) -> None:
        (saved / "deep" / "state.txt").write_text(text)
        owners[fence].save(saved, {"at": text})

    def newest() -> str:
        found = progress.newest(store, "s", tmp_path / "found")
        assert found is not None
        assert found.note == {"at": (found.directory / "deep" / "state.txt").read_text()}
        return str(found.note["at"])

    assert progress.newest(store, "s", tmp_path / "found") is None
    save(1, "one")
    save(1, "two")
    save(2, "three")
    save(1, "late, from a stale owner")
    assert newest() == "three"
    store.write("steps/s/progress/000000000002/000001/files/deep/state.txt", b"torn")
    assert newest() == "late, from a stale owner"
    store.delete("steps/s/progress/000000000001/000003/manifest.json")
    assert newest() == "two"
    progress.clear(store, "s", fence=1)
    left = store.list("steps/s/progress/")
    assert left and all(key.startswith("steps/s/progress/000000000002/") for key in left)
    save(2, "four")
    save(2, "five")
    assert newest() == "five"
    store.delete("steps/s/progress/000000000002/000003/manifest.json")
    assert newest() == "four"
    progress.clear(store, "s")
    assert store.list("steps/s/progress/") == []


@pytest.mark.parametrize("settled_s", [0, 1])
def test_a_checkpoint_writes_what_has_changed_and_keeps_what_the_newest_two_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled_s: int
) -> None:
    """Twenty trials that reach a rung one after another: each is written once, and read whole."""
    monkeypatch.setattr(progress, "_SETTLED_NS", settled_s * 10**9)
    store, saved = Counting(open_store(str(tmp_path / "store"))), tmp_path / "saved"
    saves = progress.Saves(cast("Store", store), "s", "verb", 1)
    for trial in range(20):
        home = saved / str(trial)
        home.mkdir(parents=True)
        (home / "state.bin").write_bytes(bytes([trial]) * 50)
        (home / "facts.json").write_text("{}")
        if trial == 12:  # with the times that it had, and of the same size
            times = (saved / "3" / "state.bin").stat()
            (saved / "3" / "state.bin").write_bytes(b"x" * 50)
            os.utime(saved / "3" / "state.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
        if trial == 15:
            shutil.rmtree(saved / "5")
        saves.save(saved, {"trials": trial})
    written = Counter(key.partition("/files/")[2] for key in store.written if "/files/" in key)
    assert set(written.values()) == {1, 2} and [name for name, count in written.items() if count == 2] == [
        "3/state.bin"
    ]
    found = progress.newest(cast("Store", store), "s", tmp_path / "found")
    assert found is not None and found.note == {"trials": 19}
    assert files_in(found.directory) == files_in(saved) and len(files_in(saved)) == 38
    needed = 38 + 2  # files and manifests: nothing else is left lying
    assert len(store.list("steps/s/progress/")) == needed
    heir = progress.Saves(cast("Store", store), "s", "verb", 2)
    for note in (1, 2):
        heir.save(found.directory, {"trials": note})
        assert progress.newest(cast("Store", store), "s", tmp_path / "again") is not None
    assert all("/000000000002/" in key for key in store.list("steps/s/progress/"))


def test_a_checkpoint_that_was_begun_and_not_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    store, saved = Counting(open_store(str(tmp_path / "store"))), tmp_path / "saved"
    saved.mkdir()
    saves = progress.Saves(cast("Store", store), "s", "verb", 1)
    (saved / "a").write_text("one")
    saves.save(saved, {})
    store.full = True
    (saved / "a").write_text("two")
    (saved / "b").write_text("two")
    with pytest.raises(TemporaryError):
        saves.save(saved, {})
    store.full = False
    saves.save(saved, {})
    saves.save(saved, {})
    found = progress.newest(cast("Store", store), "s", tmp_path / "found")
    assert found is not None and files_in(found.directory) == {"a": b"two", "b": b"two"}
    assert len(store.list("steps/s/progress/")) == 2 + 2


class Counting:
    """A store that notes the keys that were written; while it is full it takes one file and then no more."""

    def __init__(self, store: Store) -> None:
        self._store, self.full = store, False
        self.written: list[str] = []

    def write(self, key: str, data: bytes) -> None:
        if self.full and key.endswith("/b"):
            raise TemporaryError("store", "full")
        self.written.append(key)
        self._store.write(key, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_pause_grows_keeps_to_the_errors_delay_and_is_bounded() -> None:
    error = TemporaryError("world", delay_s=2.0)
    assert all(1.0 <= pause_s(error, 1) <= 3.0 for _ in range(50))
    assert all(4.0 <= pause_s(error, 3) <= 12.0 for _ in range(50))
    assert pause_s(error, 30) <= 90.0


def test_only_what_is_temporary_is_tried_again() -> None:
    calls: list[int] = []

    def sometimes() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise TemporaryError("world", delay_s=0.0)
        return "done"

    def never() -> str:
        calls.append(1)
        raise DataError("row 1")

    assert patiently(sometimes, lambda: None) == "done"
    calls.clear()
    with pytest.raises(DataError):
        patiently(never, lambda: None)
    assert len(calls) == 1


def test_errors_of_others_become_errors_of_ours_and_survive_the_journal() -> None:
    assert isinstance(as_ours(OSError(errno.ENOSPC, "full"), "step"), CapacityError)
    assert isinstance(as_ours(MemoryError(), "step"), CapacityError)
    assert isinstance(as_ours(ConnectionResetError(), "step"), TemporaryError)
    assert type(as_ours(KeyError("x"), "step")) is PermanentError
    error = DataError("row 17", "label: missing", "why", "Add one")
    back = from_json(to_json(error))
    assert (type(back), str(back)) == (DataError, str(error))
    assert type(from_json({"kind": "SystemExit"})) is PermanentError
