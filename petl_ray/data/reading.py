"""Rows as they stand in files: JSONL, CSV and TSV, Parquet, one at a time with their numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from petl_ray.data.nearness import hint
from petl_ray.errors import DataError

_PEEK_ROWS = 100
_LONGEST_CELL_BYTES = 16 << 20

# A row's number (from 1) and the row, or what is wrong with it.
Numbered = tuple[int, Mapping[str, Any] | str]


@dataclass
class Table:
    """One source of rows: its name for people, its columns, its rows, the names of integer classes by column."""

    name: str
    columns: list[str]
    rows: Iterator[Numbered]
    classes: Mapping[str, list[str]] = field(default_factory=dict)


def open_file(path: Path, format: str, name: str) -> Table:
    """The rows of a file. `format` is `jsonl`, `csv`, `parquet`, or `auto` by the file's ending.

    Raises DataError for a file that cannot be read as what it claims to be; a broken row is for the caller to tell.
    """
    kind = _BY_SUFFIX.get(path.suffix.lower(), "") if format == "auto" else format
    if not kind:
        raise DataError(
            name, f"ends in {path.suffix!r}", "its format cannot be told from that", "Say format: jsonl, csv or parquet"
        )
    try:
        return _READERS[kind](path, name)
    except OSError as error:
        raise DataError(name, "cannot be read", str(error.strerror or error).lower()) from error


def _jsonl(path: Path, name: str) -> Table:
    """Rows are numbered as lines; blank lines are skipped. The columns are the keys of the first hundred rows."""
    rows = _jsonl_rows(path)
    first = list(islice(rows, _PEEK_ROWS))
    columns = dict.fromkeys(key for _, row in first if not isinstance(row, str) for key in row)
    return Table(name, list(columns), chain(first, rows))


def _jsonl_rows(path: Path) -> Iterator[Numbered]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                row = json.loads(text.rstrip())
            except json.JSONDecodeError as error:
                yield number, f"column {error.colno}: not JSON: {error.msg}"
            except UnicodeDecodeError as error:
                yield number, f"byte {error.start + 1}: not UTF-8"
            except RecursionError:
                yield number, "not JSON that anybody wrote: nested too deep"
            else:
                found = f"got a JSON {'array' if isinstance(row, list) else 'value'}, expected one object a line"
                yield number, row if isinstance(row, dict) else found


def _csv(path: Path, name: str) -> Table:
    """Rows are numbered after the header, from 1; a tab separates where the file ends in .tsv."""
    csv.field_size_limit(_LONGEST_CELL_BYTES)
    rows = _csv_rows(path, name)
    _, header = next(rows, (0, []))
    columns = [column.strip() for column in header]
    if not columns:
        raise DataError(name, "is empty", "the first line names the columns", "Write a header")
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise DataError(name, f"column {twice[0]!r} stands twice", do="Name it once")
    return Table(name, columns, ((number, _by_column(columns, cells)) for number, cells in rows))


def _csv_rows(path: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    number = -1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            for cells in reader:
                if cells:
                    number += 1
                    yield number, cells
    except UnicodeDecodeError as error:
        raise DataError(name, f"not UTF-8 after row {max(number, 0)}", do="Save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{name} row {number + 1}", str(error), do="Mend its quotes") from error


def _by_column(columns: list[str], cells: list[str]) -> Mapping[str, Any] | str:
    if len(cells) != len(columns):
        return f"{len(cells)} cells, the header has {len(columns)}"
    return dict(zip(columns, cells, strict=True))


def _parquet(path: Path, name: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(name, "not a Parquet file, or a torn one", str(error).splitlines()[0]) from error

    def rows() -> Iterator[Mapping[str, Any]]:
        try:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(name, "a damaged Parquet file", str(error).splitlines()[0]) from error

    return Table(name, list(file.schema_arrow.names), enumerate(rows(), start=1))


def open_hub(source: str, config: str | None, revision: str | None, split: str, name: str) -> Table:
    """One split of a Hugging Face data set (an id at a commit, or a local directory), through `datasets`.

    Raises DataError for a split or configuration it does not have, or if neither this machine nor the hub has it.
    """
    import datasets

    quiet = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        splits = datasets.get_dataset_split_names(source, config, revision=revision)
        if split not in splits:
            raise DataError(name, f"no split {split!r}", do=hint(split, map(str, splits)))
        rows = datasets.load_dataset(source, config, split=split, revision=revision)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(name, str(error).splitlines()[0], do="Check id, config and revision") from error
    finally:
        if quiet:
            datasets.enable_progress_bars()
    classes = {
        column: list(kind.names) for column, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)
    }
    table = rows.with_format("arrow")
    batches = (row for batch in table.iter(batch_size=4096) for row in batch.to_pylist())
    return Table(name, list(rows.column_names), enumerate(batches, start=1), classes)


_BY_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_READERS: dict[str, Callable[[Path, str], Table]] = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}
