"""Which column of a table holds what: as the plan says, or by the usual names."""

from __future__ import annotations

from petl_ray.data.nearness import hint
from petl_ray.data.spec import DataRules
from petl_ray.errors import DataError

# In order of preference; compared without case.
_USUAL = {
    "text": (
        "text", "sentence", "sentence1", "premise", "utterance", "message", "content", "body", "comment", "review",
        "tweet", "query", "question", "question1", "document", "text1",
    ),
    "text_pair": ("text_pair", "sentence2", "hypothesis", "question2", "text2"),
    "label": ("label", "labels", "intent", "category", "class", "target", "sentiment", "topic"),
    "prompt": ("prompt", "instruction", "input", "source", "question"),
    "completion": ("completion", "response", "output", "answer", "target"),
}  # fmt: skip
_FIELDS = {"classification": ("text", "label", "text_pair"), "causal_lm": ("prompt", "completion")}
_OPTIONAL = {"text_pair"}


def find_columns(rules: DataRules, columns: list[str], name: str) -> dict[str, str]:
    """Field → column for the task's type, and `place` → the split's column if it has one.

    Raises DataError for a column that the plan names and the table `name` lacks, or that nobody can guess.
    """
    found: dict[str, str] = {}
    for field in _FIELDS[rules.task_type]:
        wanted = getattr(rules.columns, field)
        column = _named(wanted, columns, f"columns.{field}", name) if wanted else _guessed(field, columns, found)
        if column is not None:
            found[field] = column
        elif field not in _OPTIONAL:
            raise DataError(
                name,
                f"no column for {field}; there are {', '.join(columns) or 'none'}",
                f"none is called {', '.join(_USUAL[field][:4])}, …",
                f"Say columns: {{{field}: NAME}}",
            )
    return found


def find_place(rules: DataRules, columns: list[str], name: str) -> str | None:
    """The column that `split` goes by; None if it goes by the row itself."""
    return _named(rules.split.column, columns, "split.column", name) if rules.split.column else None


def _named(wanted: str, columns: list[str], key: str, name: str) -> str:
    if wanted not in columns:
        raise DataError(f"{name}: {key}", f"no column {wanted!r}", do=hint(wanted, columns))
    return wanted


def _guessed(field: str, columns: list[str], taken: dict[str, str]) -> str | None:
    free = {column.lower(): column for column in reversed(columns) if column not in taken.values()}
    return next((free[usual] for usual in _USUAL[field] if usual in free), None)
