"""What people see: tables and messages on a terminal, JSON on request. Facts go to stdout, remarks to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.table import Table

from petl_ray.errors import PetlRayError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def complain(text: str) -> None:
    """An error, to stderr, without markup."""
    err.print(text, style="red", markup=False, soft_wrap=True)


def told_of(error: PetlRayError) -> dict[str, Any]:
    """An error for programs: its kind and exit code, the four parts of its message, and the whole."""
    parts = {name: getattr(error, name) for name in ("what", "found", "why", "do")}
    return {"kind": type(error).__name__, "exit_code": error.exit_code, **parts, "message": str(error)}


def remark(text: str) -> None:
    """A line about what is going on, to stderr, without markup."""
    err.print(text, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """`value` as JSON, to stdout; one document, indented for people and good for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A plain table to stdout; as wide as it needs to be where stdout is no terminal."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = out if out.is_terminal else Console(highlight=False, width=240)
    console.print(table, markup=False)


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, empty: str) -> None:
    """Rows as JSON or as a table of `columns`; `empty` is said where there are none."""
    if as_json:
        print_json(list(rows))
    elif rows:
        print_table(columns, [[told(row.get(name)) for name in columns] for row in rows])
    else:
        remark(empty)


def told(value: Any) -> str:
    """A value as people read it: digests short, lists joined."""
    if value is None:
        return ""
    if isinstance(value, str) and len(value) == 64 and all(char in "0123456789abcdef" for char in value):
        return value[:12]
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else ""
    return str(value)


def moment(seconds: float | None, zone: str | None = None) -> str:
    """Seconds since 1970 as local time; with `zone` as the time there, and the zone's name behind it."""
    if not seconds:
        return ""
    there = datetime.fromtimestamp(seconds, ZoneInfo(zone) if zone else None).strftime("%Y-%m-%d %H:%M:%S")
    return f"{there} {zone}" if zone else there


def size(count_bytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KB", "MB"):
        if count_bytes < 1000:
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.2f} {unit}"
        count_bytes /= 1000
    return f"{count_bytes:.2f} GB"
