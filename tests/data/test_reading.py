"""Broken files and broken rows: one error that says which row, what stands there, and how many there are."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petl_ray.errors import DataError
from tests.data.conftest import Kitchen, tickets, write_csv, write_jsonl

BROKEN: list[tuple[str, str]] = [
    ('{"text": "x"}', "row 3: label: missing"),
    ('{"text": "x", "label": null}', "row 3: label: missing"),
    ('{"text": "x", "label": "  "}', "row 3: label: missing"),
    ('{"text": "", "label": "bug"}', "row 3: text: empty"),
    ('{"text": " \\t ", "label": "bug"}', "row 3: text: empty"),
    ('{"label": "bug"}', "row 3: text: missing"),
    ('{"text": 17, "label": "bug"}', "row 3: text: got int 17, expected text"),
    ('{"text": ["a"], "label": "bug"}', r"row 3: text: got list \['a'\], expected text"),
    ('{"text": "x", "label": 0.5}', "row 3: label: got float 0.5, expected a label"),
    ('{"text": "x", "label": NaN}', "row 3: label: got float nan, expected a label"),
    ('{"text": "x", "label": {"a": 1}}', "row 3: label: got dict"),
    ('{"text": "x", "label": "bug"', "row 3: column 29: not JSON"),
    ("not json", "row 3: column 1: not JSON"),
    ('["text", "label"]', "row 3: got a JSON array, expected one object a line"),
    ("17", "row 3: got a JSON value, expected one object a line"),
    ('{"text": "\\ud800", "label": "bug"}', "row 3: text: half of a surrogate pair"),
    ("[" * 100_000, "row 3: not JSON"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_broken_row_is_named_by_its_number(kitchen: Kitchen, tmp_path: Path, line: str, message: str) -> None:
    path = write_jsonl(tmp_path / "emails.jsonl", tickets(2))
    path.write_text(path.read_text() + line + "\n" + write_jsonl(tmp_path / "more.jsonl", tickets(30)).read_text())
    with pytest.raises(DataError, match=f"^emails.jsonl {message}"):
        kitchen.prepare(path)


def test_text_that_is_not_utf8_is_named_by_row_and_byte(kitchen: Kitchen, tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "ok", "label": "bug"}\n' + '{"text": "café", "label": "bug"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.jsonl row 2: byte 14: not UTF-8"):
        kitchen.prepare(path)


def test_ten_broken_rows_are_told_and_all_are_counted(kitchen: Kitchen, make_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(DataError) as caught:
        kitchen.prepare(make_jsonl([*tickets(3), *({"text": "x"} for _ in range(25))]))
    text = str(caught.value)
    assert text.startswith("emails.jsonl: 25 broken rows\n  row 4: label: missing\n  row 5")
    assert "row 13" in text
    assert "row 14" not in text
    assert "… and 15 more" in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_blank_lines_and_a_byte_order_mark_are_no_rows(kitchen: Kitchen, tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "plain.jsonl", tickets(30))
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert kitchen.prepare(marked).digest == kitchen.prepare(plain).digest


def test_a_named_column_that_is_not_there_is_refused_with_the_nearest(
    kitchen: Kitchen, make_jsonl: Callable[..., Path]
) -> None:
    path = make_jsonl([{"body": row["text"], "queue": row["label"]} for row in tickets(30)])
    with pytest.raises(DataError, match=r"columns\.text: no column 'bdoy'\. Did you mean body\?"):
        kitchen.prepare(path, columns={"text": "bdoy", "label": "queue"})
    assert kitchen.prepare(path, columns={"text": "body", "label": "queue"}).labels == ("bug", "refund")


def test_a_column_that_nobody_can_guess_is_asked_for(kitchen: Kitchen, make_jsonl: Callable[..., Path]) -> None:
    path = make_jsonl([{"words": row["text"], "label": row["label"]} for row in tickets(30)])
    with pytest.raises(DataError, match=r"no column for text; there are words, label.*Say columns: \{text: NAME\}"):
        kitchen.prepare(path)


@pytest.mark.parametrize("names", [("Sentence", "Intent"), ("utterance", "category"), ("comment", "sentiment")])
def test_usual_names_are_understood(kitchen: Kitchen, make_jsonl: Callable[..., Path], names: tuple[str, str]) -> None:
    path = make_jsonl([{names[0]: row["text"], names[1]: row["label"], "noise": 1} for row in tickets(30)])
    assert kitchen.prepare(path).labels == ("bug", "refund")


def test_a_label_outside_the_list_is_named_by_its_row(kitchen: Kitchen, make_jsonl: Callable[..., Path]) -> None:
    path = make_jsonl([*tickets(30), {"text": "x", "label": "refnd"}])
    with pytest.raises(
        DataError, match=r"row 31: label: got 'refnd', which is none of the labels\. Did you mean refund"
    ):
        kitchen.prepare(path, labels=["refund", "bug"])


def test_a_class_number_outside_the_list_is_named_by_its_row(kitchen: Kitchen, make_jsonl: Callable[..., Path]) -> None:
    path = make_jsonl([*tickets(30), {"text": "x", "label": -1}])
    with pytest.raises(DataError, match=r"row 31: label: got -1, expected 0 to 1"):
        kitchen.prepare(path, labels=["refund", "bug"])


def test_a_csv_row_with_other_cells_than_the_header_is_named(kitchen: Kitchen, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", tickets(2))
    path.write_text(path.read_text() + "one, two, three\n")
    with pytest.raises(DataError, match=r"t.csv row 3: 3 cells, the header has 2"):
        kitchen.prepare(path)


def test_csv_quotes_may_hold_commas_and_lines(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [{"text": f'he said "no",\nand left {number}', "label": number % 2} for number in range(40)]
    by_csv = kitchen.prepare(write_csv(tmp_path / "t.csv", rows))
    assert by_csv.digest == kitchen.prepare(write_jsonl(tmp_path / "t.jsonl", rows)).digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv: is empty"),
        (b"text,text\na,b\n", "column 'text' stands twice"),
        (b'text,label\n"open,bug\n', "t.csv row 1: unexpected end of data"),
        (b"text,label\ncaf\xe9,bug\n", "t.csv: not UTF-8"),
    ],
)
def test_a_csv_that_is_none_is_refused(kitchen: Kitchen, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        kitchen.prepare(path)


def test_a_file_that_is_no_parquet_is_refused(kitchen: Kitchen, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"t.parquet: not a Parquet file"):
        kitchen.prepare(path)


def test_a_damaged_parquet_file_is_refused(kitchen: Kitchen, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(tickets(5000)), path, compression="zstd", use_dictionary=False
    )
    content = bytearray(path.read_bytes())
    content[200:2000] = b"\0" * 1800
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet"):
        kitchen.prepare(path)


def test_parquet_cells_that_are_no_text_are_named_by_row(kitchen: Kitchen, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = [*tickets(3), {"text": None, "label": "bug"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet row 4: text: missing"):
        kitchen.prepare(tmp_path / "t.parquet")


def test_a_format_that_cannot_be_told_is_asked_for(kitchen: Kitchen, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.data", tickets(30))
    with pytest.raises(DataError, match=r"ends in '.data'.*Say format"):
        kitchen.prepare(path)
    assert sum(kitchen.prepare(path, format="jsonl").rows.values()) == 30


def test_an_empty_file_is_refused(kitchen: Kitchen, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(DataError, match="no column for text; there are none"):
        kitchen.prepare(tmp_path / "none.jsonl")
