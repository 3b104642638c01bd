"""A row that has been checked: its text, its label, and the key by which equal rows are known."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from petl_ray.data.columns import find_columns, find_place
from petl_ray.data.nearness import hint
from petl_ray.data.problems import Problems
from petl_ray.data.reading import Table
from petl_ray.data.spec import DataRules
from petl_ray.data.times import seconds

_CHECK_ROWS = 20_000
_as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # canonical JSON of plain lists


class Row(NamedTuple):
    """`key` is a digest of the normalised text (and pair), or prompt: equal keys never stand on two sides.

    Rows sort by key, which is as good as shuffled, and the same in every process. `first` is text or prompt, `second`
    the pair (None without one) or the completion; `label` is "" without one; `place` is what the split goes by.
    """

    key: bytes
    first: str
    second: str | None
    label: str
    place: str | float | None

    @property
    def identifier(self) -> str:
        """sha256 of the row's content (texts and the label's name), 20 hex digits."""
        return hashlib.sha256(_as_json([self.first, self.second, self.label]).encode()).hexdigest()[:20]


def normalised(text: str) -> str:
    """`text` as it is compared: Unicode NFKC, case folded, runs of white space as one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def read_rows(tables: Iterable[Table], rules: DataRules, placed: bool, check: Callable[[], None]) -> list[Row]:
    """All rows of the tables, checked; `placed`: the split's column is needed. `check` is called now and then.

    Raises DataError naming the first ten broken rows by number, and how many there are.
    """
    rows: list[Row] = []
    for table in tables:
        problems = Problems(table.name)
        parse = _Parser(table, rules, placed)
        for number, raw in table.rows:
            if number % _CHECK_ROWS == 0:
                check()
            try:
                if isinstance(raw, str):
                    raise ValueError(raw)
                rows.append(parse(raw))
            except ValueError as error:
                problems.add(number, str(error))
        problems.raise_if_any()
    return rows


class _Parser:
    """Makes Rows of one table's rows; raises ValueError with the complaint for a broken one."""

    def __init__(self, table: Table, rules: DataRules, placed: bool) -> None:
        self.columns = find_columns(rules, table.columns, table.name)
        self.place = find_place(rules, table.columns, table.name) if placed else None
        self.by_time = rules.split.by == "time"
        self.classes = table.classes.get(self.columns.get("label", ""), [])
        self.labels = rules.labels
        self.causal = rules.task_type == "causal_lm"
        self._known = {label: label for label in rules.labels or ()}  # one string object a label, not one a row

    def __call__(self, raw: Mapping[str, Any]) -> Row:
        if self.causal:
            prompt, completion = self._text(raw, "prompt"), self._text(raw, "completion")
            return Row(_key(prompt), prompt, completion, "", self._place(raw))
        text = self._text(raw, "text")
        pair = self._text(raw, "text_pair") if "text_pair" in self.columns else None
        return Row(_key(text, pair), text, pair, self._label(raw), self._place(raw))

    def _text(self, raw: Mapping[str, Any], field: str) -> str:
        value = raw.get(self.columns[field])
        if value is None:
            raise ValueError(f"{self.columns[field]}: missing")
        if not isinstance(value, str):
            raise ValueError(f"{self.columns[field]}: got {_shown(value)}, expected text")
        if not value.strip():
            raise ValueError(f"{self.columns[field]}: empty")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{self.columns[field]}: half of a surrogate pair, which is no text")
        return value

    def _label(self, raw: Mapping[str, Any]) -> str:
        column = self.columns["label"]
        value = raw.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise ValueError(f"{column}: missing")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int):
            raise ValueError(f"{column}: got {_shown(value)}, expected a label")
        name = self._name(str(value).strip(), column)
        return self._known.setdefault(name, name)

    def _name(self, label: str, column: str) -> str:
        """The label's name: classes given by number stand for the source's own names, or for those of the plan."""
        if self.labels is not None and label in self._known:
            return label
        by_number = self.classes or self.labels
        if by_number and label.removeprefix("-").isdecimal():
            label = self._at(by_number, label, column)
        if self.labels is not None and label not in self.labels:
            raise ValueError(f"{column}: got {label!r}, which is none of the labels. {hint(label, self.labels)}")
        return label

    @staticmethod
    def _at(names: Sequence[str], index: str, column: str) -> str:
        if not 0 <= int(index) < len(names):
            raise ValueError(f"{column}: got {index}, expected 0 to {len(names) - 1}")
        return names[int(index)]

    def _place(self, raw: Mapping[str, Any]) -> str | float | None:
        if self.place is None:
            return None
        value = raw.get(self.place)
        if value is None or value == "":
            raise ValueError(f"{self.place}: missing; the split goes by it")
        if not self.by_time:
            return str(value)
        try:
            return seconds(value)
        except ValueError:
            raise ValueError(f"{self.place}: got {_shown(value)}, expected a time such as 2024-05-31T12:00") from None


def _key(first: str, second: str | None = None) -> bytes:
    text = normalised(first) if second is None else f"{normalised(first)}\x1f{normalised(second)}"
    return hashlib.sha256(text.encode()).digest()[:16]


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '…'}"
