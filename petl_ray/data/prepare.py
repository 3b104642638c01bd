"""From pinned sources to a Dataset: read, check, split, clean, write. The order of the input changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petl_ray.artifact import Dataset
from petl_ray.data.card import describe
from petl_ray.data.cleaning import at_most, settle_labels, without_copies, without_leaks, without_unseen
from petl_ray.data.reading import Table, open_file, open_hub
from petl_ray.data.references import Hub, parse_reference
from petl_ray.data.rows import Row, read_rows
from petl_ray.data.spec import DataSpec
from petl_ray.data.splitting import split_off, time_boundaries
from petl_ray.errors import DataError
from petl_ray.verb import StepContext

_SIDES = ("train", "validation", "test")


def prepare(spec: DataSpec, *, step: StepContext) -> Dataset:
    """The Dataset that `spec` asks for: `train.jsonl`, `validation.jsonl`, `test.jsonl` and the trace `card.json`.

    Rows are ordered by id. The digest depends on rows, labels and names alone: not on the order of the input, not on
    paths, not on rows that are taken out; so the card, which tells of those, is a trace.
    Raises DataError for sources that changed since they were pinned, broken rows (ten of them by number), a side
    without rows, and labels that training never sees.
    """
    given = {side: _read(spec, side, step) for side in _SIDES if getattr(spec, side) is not None}
    _agree_on_pairs(spec, given)
    read = {side: len(rows) for side, rows in given.items()}
    sides, removed = _cleaned(spec, given)
    labels, sides, unseen = _labelled(spec, sides)
    facts: dict[str, Any] = {"read": read, "removed": {**removed, "unseen_labels": unseen}}
    if spec.split.by == "time":
        wanted = {"validation", "test"} - given.keys()
        bounds = time_boundaries(spec.split, wanted)
        facts["boundaries_s"] = {f"{side}_from": bounds[side] for side in sorted(wanted) if bounds[side] < float("inf")}
    _refuse_empty(spec, sides)
    numbers = {label: number for number, label in enumerate(labels)}
    for side in _SIDES:
        step.check()
        _write(step.out / f"{side}.jsonl", sides[side], numbers, spec.task_type)
    card = describe(spec, sides, labels, facts)
    (step.out / "card.json").write_text(
        json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    step.report("prepare.done", task=spec.task, rows={side: len(sides[side]) for side in _SIDES})
    return Dataset(
        task=spec.task,
        task_type=spec.task_type,
        labels=labels,
        rows={side: len(sides[side]) for side in _SIDES},
        files=step.keep(*(f"{side}.jsonl" for side in _SIDES)),
        traces=step.keep("card.json"),
    )


def _read(spec: DataSpec, side: str, step: StepContext) -> list[Row]:
    pin = getattr(spec, side)
    where = f"{spec.task}: data.{side}"
    reference = parse_reference(pin.uri, side, where)
    if reference.digest(where) != pin.digest:
        raise DataError(where, f"{pin.uri} has changed", "it was pinned with other bytes", "Run the plan again")
    tables: list[Table]
    if isinstance(reference, Hub):
        source = str(reference.directory or reference.id)
        tables = [open_hub(source, reference.config, reference.revision, reference.split, reference.uri)]
    else:
        tables = [open_file(path, spec.format, path.name) for path in reference.paths(where)]
    placed = side == "train" and (spec.validation is None or spec.test is None)
    rows = read_rows(tables, spec, placed, step.check)
    step.report("prepare.read", task=spec.task, side=side, rows=len(rows))
    return rows


def _agree_on_pairs(spec: DataSpec, given: dict[str, list[Row]]) -> None:
    with_pairs = {side: rows[0].second is not None for side, rows in given.items() if rows}
    if len(set(with_pairs.values())) > 1:
        names = ", ".join(side for side, has in with_pairs.items() if has)
        raise DataError(
            f"{spec.task}: data", f"only {names} has a text_pair", "all sides are read alike", "Say columns"
        )


def _cleaned(spec: DataSpec, given: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """All three sides, split and cleaned, and how many rows went for which reason. Given test rows stay whole."""
    wanted = {"validation", "test"} - given.keys()
    sides = {
        **split_off(given["train"], spec.split, wanted),
        **{side: given[side] for side in given if side != "train"},
    }
    counts: Counter[str] = Counter()
    if spec.deduplicate:
        for side in {"train"} | wanted:
            sides[side], copies, conflicts = without_copies(sides[side])
            counts.update(duplicates=copies, conflicting_labels=conflicts)
    sides, leaked = without_leaks(sides)
    for side in _SIDES:
        sides[side], left_out = at_most(sides[side], spec.max_rows)
        counts.update(over_max_rows=left_out)
    return sides, {
        "duplicates": counts["duplicates"],
        "conflicting_labels": counts["conflicting_labels"],
        "leaked": leaked,
        "over_max_rows": counts["over_max_rows"],
    }


def _labelled(
    spec: DataSpec, sides: dict[str, list[Row]]
) -> tuple[tuple[str, ...], dict[str, list[Row]], dict[str, int]]:
    """The labels by number, the sides without labels that training lacks, and how many such rows were dropped."""
    if spec.task_type != "classification":
        return (), sides, {}
    labels = settle_labels(sides["train"], spec.labels, spec.task)
    seen = {row.label for row in sides["train"]}
    kept, dropped = dict(sides), {}
    for side in ("validation", "test"):
        kept[side], dropped[side] = without_unseen(sides[side], seen, side, spec.task, spec.on_unseen_label == "drop")
    return labels, kept, dropped


def _refuse_empty(spec: DataSpec, sides: dict[str, list[Row]]) -> None:
    """A side without rows is an error, unless the plan asks for none by a share of 0."""
    shares = {"train": 1.0, "validation": spec.split.validation, "test": spec.split.test}
    for side in _SIDES:
        if not sides[side] and (shares[side] > 0 or getattr(spec, side) is not None):
            raise DataError(
                f"{spec.task}: data.{side}",
                "no rows",
                f"{len(sides['train'])} rows are left for training after splitting and cleaning",
                "Give more rows, or other shares in `split`",
            )


def _write(path: Path, rows: Sequence[Row], numbers: dict[str, int], task_type: str) -> None:
    """Write the rows ordered by id; rows that were kept although they are equal get `-2`, `-3`, … after their id."""
    as_json = json.JSONEncoder(ensure_ascii=False).encode
    seen: Counter[str] = Counter()
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for name, row in sorted(((row.identifier, row) for row in rows), key=lambda named: named[0]):
            seen[name] += 1
            entry: dict[str, Any] = {"id": name if seen[name] == 1 else f"{name}-{seen[name]}"}
            if task_type == "causal_lm":
                entry |= {"prompt": row.first, "completion": row.second}
            else:
                entry |= {"text": row.first}
                entry |= {"text_pair": row.second} if row.second is not None else {}
                entry |= {"label": numbers[row.label]}
            stream.write(as_json(entry) + "\n")
