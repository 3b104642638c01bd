"""The answers of every system to the same rows, from the bank's serving layout: what is measured is what will answer.

Adapters of one locked base stand in slots beside it and are answered in mixed batches, one base after another. Rows of
one padded length stand together, so a batch holds little padding; the order of the answers is that of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from petl_ray.artifact import Adapter, Dataset
from petl_ray.bank import ServingBank
from petl_ray.methods import read_adapter
from petl_ray.models import LoadedBase, LockedBase, load_base, use_threads
from petl_ray.tasks import Encoded, RowScore, Task, task_of
from petl_ray.verb import StepContext

Rows = Sequence[Mapping[str, Any]]

BASE = "base"  # the rival that is the base without any adapter
UNKNOWN_LABEL_LOSS = math.log(1e12)  # nats charged for a row whose label the adapter never learned
_LENGTH_STEP = 8
_LOGITS = 1 << 26  # logits of one batch held at once: 256 MiB in fp32


@dataclass(frozen=True)
class System:
    """One that answers: an adapter, or the plain base where `adapter` is None; `like` says whose base and card."""

    role: str
    adapter: Adapter | None
    like: Adapter


@dataclass(frozen=True)
class _Placed:
    """A system with its slot, and its rows as tokens under its own length limit and labels."""

    role: str
    slot: int | None
    labels: tuple[str, ...]
    max_length: int
    encoded: list[Encoded]


def answer_rows(
    systems: Sequence[System], rows: Rows, dataset: Dataset, batch_tokens: int, step: StepContext
) -> dict[str, list[RowScore]]:
    """Every system's score of every row, by role, in the order of `rows`; label indices are the dataset's.

    A label that only an adapter knows counts as index `len(dataset.labels)`: always wrong. Raises BaseModelError where
    a base is absent or changed, AdapterError for broken adapter files.
    """
    use_threads(step.resources.cpus)
    groups: dict[str, list[System]] = {}
    for system in systems:
        like = system.like
        groups.setdefault(f"{like.base.digest} {like.precision} {like.quantization}", []).append(system)
    answers: dict[str, list[RowScore]] = {}
    for members in groups.values():
        answers |= _answer_group(members, rows, dataset, batch_tokens, step)
    return answers


def _answer_group(
    systems: Sequence[System], rows: Rows, dataset: Dataset, batch_tokens: int, step: StepContext
) -> dict[str, list[RowScore]]:
    like = systems[0].like
    task = task_of(dataset.task_type)
    locked = LockedBase(pinned=like.base, precision=like.precision, quantization=like.quantization)
    loaded = load_base(locked, dataset.task_type)
    bank = ServingBank(loaded, slots=max(1, len(systems)))
    try:
        placed = [_place(bank, slot, system, rows, dataset, loaded, step) for slot, system in enumerate(systems)]
        scored: dict[str, dict[int, RowScore]] = {each.role: {} for each in placed}
        done, total = 0, len(rows) * len(placed)
        for batch in _batches(placed, _budget(batch_tokens, task, loaded)):
            step.check()
            for (system, row), score in zip(batch, _answer(bank, task, batch, loaded), strict=True):
                scored[system.role][row] = _translated(score, system.labels, dataset, rows[row])
            done += len(batch)
            step.report("evaluate.rows", done=done, total=total)
    finally:
        bank.detach()
    return {role: [by_row[row] for row in range(len(rows))] for role, by_row in scored.items()}


def _place(
    bank: ServingBank,
    slot: int,
    system: System,
    rows: Rows,
    dataset: Dataset,
    loaded: LoadedBase,
    step: StepContext,
) -> _Placed:
    directory = step.fetch(system.like)
    files = read_adapter(directory, loaded)
    if system.adapter is not None:
        bank.install(slot, files)
    card = files.card
    known = {label: index for index, label in enumerate(card.labels)}
    asked = [_in_labels(row, dataset, known) for row in rows]
    task = task_of(dataset.task_type)
    encoded = task.encode(asked, loaded.tokenizer, card.max_length, card.template or "{prompt}")
    return _Placed(system.role, slot if system.adapter is not None else None, card.labels, card.max_length, encoded)


def _in_labels(row: Mapping[str, Any], dataset: Dataset, known: Mapping[str, int]) -> Mapping[str, Any]:
    """The row with its label as the adapter's index; 0 stands in where the adapter never learned it."""
    if dataset.task_type != "classification":
        return row
    return {**row, "label": known.get(dataset.labels[int(row["label"])], 0)}


def _translated(score: RowScore, labels: Sequence[str], dataset: Dataset, row: Mapping[str, Any]) -> RowScore:
    """The score in the dataset's label indices."""
    if dataset.task_type != "classification" or tuple(labels) == dataset.labels:
        return score
    truth = int(row["label"])
    guess = labels[score.prediction]
    prediction = dataset.labels.index(guess) if guess in dataset.labels else len(dataset.labels)
    loss = score.loss_sum if dataset.labels[truth] in labels else UNKNOWN_LABEL_LOSS
    return replace(score, reference=truth, prediction=prediction, loss_sum=loss)


def _batches(placed: Sequence[_Placed], tokens: int) -> Iterator[list[tuple[_Placed, int]]]:
    """(system, row number) pairs in batches of one padded length and at most `tokens` tokens (at least one row).

    A row is padded alike in whatever batch it comes to stand, so its answer does not depend on `tokens` or on rivals.
    """
    every = [(system, row) for system in placed for row in range(len(system.encoded))]
    every.sort(key=_padded)
    for length, pairs in groupby(every, key=_padded):
        yield from _parts(list(pairs), max(1, tokens // length))


def _parts(pairs: list[tuple[_Placed, int]], most: int) -> Iterator[list[tuple[_Placed, int]]]:
    return (pairs[at : at + most] for at in range(0, len(pairs), most))


def _padded(pair: tuple[_Placed, int]) -> int:
    """The length a row is padded to: the next multiple of eight tokens, where the limit allows."""
    system, row = pair
    length = system.encoded[row].length_tokens
    return max(length, min(system.max_length, -(-length // _LENGTH_STEP) * _LENGTH_STEP))


def _budget(batch_tokens: int, task: Task, loaded: LoadedBase) -> int:
    """Padded tokens in one batch, bounded where every token has logits over the vocabulary."""
    if task.name != "causal_lm":
        return batch_tokens
    return max(1, min(batch_tokens, _LOGITS // int(loaded.model.config.get_text_config().vocab_size)))


def _answer(bank: ServingBank, task: Task, batch: Sequence[tuple[_Placed, int]], loaded: LoadedBase) -> list[RowScore]:
    """One score a pair, in order; the rows of one system are scored together."""
    whole = task.collate([system.encoded[row] for system, row in batch], loaded.pad_id, _padded(batch[0]))
    logits = bank.answer([system.slot for system, _ in batch], whole.input_ids, whole.attention_mask, whole.extra)
    places: dict[str, list[int]] = {}
    for place, (system, _) in enumerate(batch):
        places.setdefault(system.role, []).append(place)
    scores: dict[int, RowScore] = {}
    for mine in places.values():
        alone = task.collate(
            [batch[place][0].encoded[batch[place][1]] for place in mine], loaded.pad_id, whole.input_ids.shape[1]
        )
        answers = torch.stack([logits[place] for place in mine])
        scores |= zip(mine, task.score_rows(answers, alone), strict=True)
    return [scores[place] for place in range(len(batch))]
