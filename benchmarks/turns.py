"""What the product runs: turns of a session whose slots are all under way, over a base of a shape with random weights."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contest import ALPHA, LABELS, RANK, RATE, Step
from benchmarks.shapes import Precision, base
from petl_ray.models import BaseSpec, resolve
from petl_ray.training import TrainSpec
from petl_ray.training.session import Session, open_session

BATCHES, WORDS = 4, 64  # batches of an epoch; words that rows are made of


@contextlib.contextmanager
def turning(shape: str, precision: Precision, slots: int, rows: int, length: int) -> Iterator[Step]:
    """A turn of `slots` occupants with seeds of their own, `rows` x `length` tokens each, on the device that a session
    chooses; it answers with the mean of their losses. Nobody arrives, so nothing is validated."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(_written(Path(folder) / "base", shape, precision))
        data = write_rows(Path(folder) / "data", BATCHES * rows, rows, length)
        recipe = {
            "base": resolve(BaseSpec(source=source, precision=precision)),
            "method": {"kind": "lora", "rank": RANK, "alpha": ALPHA, "targets": "all-linear"},
            "learning_rate": RATE,
            "epochs": 1000,
            "batch_size": rows,
            "max_length": length,
        }
        session = open_session(TrainSpec.model_validate(recipe), slots, torch.get_num_threads())
        keys = [f"trial {seed}" for seed in range(slots)]
        for seed, key in enumerate(keys):
            session.admit(key, TrainSpec.model_validate({**recipe, "seed": seed}), data)
            session.aim(key, 1.0)
        try:
            yield lambda: take_turn(session, keys)
        finally:
            session.close()


def take_turn(session: Session, keys: Sequence[str]) -> Tensor:
    """One step of those who are under way; the mean of the losses of `keys`. Nobody may arrive."""
    turn = session.turn()
    assert not turn.failed and not turn.arrived, "a turn of the benchmark is one step of everybody"
    return torch.tensor([session.occupant(key).metrics["train_loss"] for key in keys]).mean()


def _written(folder: Path, shape: str, precision: Precision) -> Path:
    """The base and a tokenizer of a few words, as files that a session can load."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {word: at for at, word in enumerate((*special, *(f"w{number}" for number in range(WORDS))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    base(shape, precision).model.save_pretrained(folder)
    return folder


def write_rows(folder: Path, train: int, validation: int, length: int) -> Path:
    """A Dataset's files: so many rows of `length` tokens, the two around the words included. Where a tokenizer makes
    several tokens of a word, that is what `max_length` cuts them to."""
    folder.mkdir()
    chance = torch.Generator().manual_seed(0)
    for side, count in (("train", train), ("validation", validation)):
        lines = []
        for at in range(count):
            words = torch.randint(WORDS, (length - 2,), generator=chance).tolist()
            row = {"id": f"{side}-{at}", "text": " ".join(f"w{word}" for word in words), "label": at % LABELS}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{side}.jsonl").write_text("".join(lines), encoding="utf-8")
    labels = [f"class {number}" for number in range(LABELS)]
    card = {"task": "bench", "task_type": "classification", "labels": labels}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return folder
