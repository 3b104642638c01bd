"""References: found, pinned, or refused with the name that was probably meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from petl_ray.data import DataSource, lock
from petl_ray.data.references import Hub, parse_reference
from petl_ray.errors import DataError
from petl_ray.fingerprint import sha256_file
from tests.data.conftest import Kitchen, tickets, write_csv, write_jsonl

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_file_is_pinned_by_its_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", tickets(3))
    monkeypatch.chdir(tmp_path)
    spec = lock(DataSource(task="tickets", train="t.jsonl"))
    assert spec.train.digest == sha256_file(path)
    assert spec.train.uri == str(path)
    assert spec.validation is None


def test_a_missing_file_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "tickets.jsonl", tickets(1))
    with pytest.raises(
        DataError, match=r"tickets: data\.train: no file .*tickts\.jsonl.*Did you mean tickets\.jsonl\?"
    ):
        lock(DataSource(task="tickets", train=str(tmp_path / "tickts.jsonl")))


def test_a_missing_file_is_refused_with_what_is_there(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", tickets(1))
    with pytest.raises(DataError, match=r"Known here: a\.jsonl"):
        lock(DataSource(task="tickets", train=str(tmp_path / "something else")))
    with pytest.raises(DataError, match="there is no folder"):
        lock(DataSource(task="tickets", train=str(tmp_path / "no" / "t.jsonl")))


@pytest.mark.parametrize("uri", ["https://example.org/t.jsonl", "s3://bucket/t.jsonl", "hf:", "hf:@x"])
def test_what_cannot_be_read_is_refused(uri: str) -> None:
    with pytest.raises(DataError, match=r"data\.train: got"):
        lock(DataSource(task="tickets", train=uri))


@pytest.mark.parametrize(
    ("uri", "hub"),
    [
        ("hf:org/name", Hub("org/name", None, None, "test")),
        ("hf:org/name#validation[:10]", Hub("org/name", None, None, "validation[:10]")),
        (f"hf:org/name:cola@{COMMIT}#train", Hub("org/name", "cola", COMMIT, "train")),
        ("hf:name@main", Hub("name", None, "main", "test")),
    ],
)
def test_hub_ids_are_read_and_written(uri: str, hub: Hub) -> None:
    found = parse_reference(uri, "test", "data")
    assert found == hub
    assert parse_reference(found.uri, "train", "data") == hub


def test_a_commit_is_pinned_without_asking_anybody() -> None:
    spec = lock(DataSource(task="t", train=f"hf:org/name@{COMMIT}"))
    other = lock(DataSource(task="t", train=f"hf:org/name@{COMMIT}#validation"))
    assert spec.train.uri == f"hf:org/name@{COMMIT}#train"
    assert spec.train.digest != other.train.digest


def test_an_id_without_commit_needs_the_hub() -> None:
    with pytest.raises(DataError, match=r"names no commit and the hub cannot be asked.*hf:ID@COMMIT"):
        lock(DataSource(task="t", train="hf:org/name"))


def test_a_file_more_is_another_question(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "part-1.jsonl", tickets(3))
    source = DataSource(task="t", train=str(tmp_path / "part-*.jsonl"))
    before = lock(source).train.digest
    write_jsonl(tmp_path / "part-2.jsonl", tickets(3, 3))
    assert lock(source).train.digest != before


@pytest.mark.parametrize(
    "rules",
    [
        {"task_type": "causal_lm", "labels": ["a"]},
        {"labels": ["a", "a"]},
        {"columns": {"prompt": "p"}},
        {"task_type": "causal_lm", "columns": {"text": "p"}},
        {"task": "../etc"},
        {"colums": {}},
    ],
)
def test_rules_that_contradict_themselves_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataSource.model_validate({"task": "t", "train": "t.jsonl", **rules})


@pytest.fixture
def hub_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as a hub repository holds it: Parquet by split, class names in the schema, a card with two configs."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "hub-set"
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["refund", "bug"])}
    )
    for split, count, start in (("train", 60, 0), ("validation", 10, 60), ("test", 10, 70)):
        (root / "data").mkdir(parents=True, exist_ok=True)
        rows = [{**row, "label": int(row["label"] == "bug")} for row in tickets(count, start)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(
            root / "data" / f"{split}-00000-of-00001.parquet"
        )
    return root


def test_a_hugging_face_directory_is_read_with_its_class_names(
    kitchen: Kitchen, hub_directory: Path, tmp_path: Path
) -> None:
    uri = f"hf:{hub_directory}"
    hub = kitchen.prepare(uri, validation=uri, test=uri)
    files = {
        split: str(write_csv(tmp_path / f"{split}.csv", tickets(count, start)))
        for split, count, start in (("train", 60, 0), ("validation", 10, 60), ("test", 10, 70))
    }
    plain = kitchen.prepare(**files)
    assert hub.labels == ("bug", "refund")
    assert hub.digest == plain.digest


def test_a_split_that_a_hugging_face_directory_lacks_is_refused(kitchen: Kitchen, hub_directory: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'tset'\. Did you mean test\?"):
        kitchen.prepare(f"hf:{hub_directory}", test=f"hf:{hub_directory}#tset")


def test_an_edited_hugging_face_directory_is_another_question(hub_directory: Path) -> None:
    source = DataSource(task="t", train=f"hf:{hub_directory}")
    before = lock(source).train.digest
    (hub_directory / "data" / "test-00000-of-00001.parquet").unlink()
    assert lock(source).train.digest != before


def test_a_hugging_face_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train: no file"):
        lock(DataSource(task="t", train=f"hf:{tmp_path}/nothing"))
