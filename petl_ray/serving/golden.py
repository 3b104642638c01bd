"""Golden answers: logits that an adapter gave when it was trained and must give again here, alone and in company.

They are checked through the very forward pass that answers requests, so that a wrong base, tokenizer, precision,
library or slot is found before the first request and not by a customer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from petl_ray.errors import AdapterError
from petl_ray.models.spec import Precision

MAX_BYTES = 256 << 20
COMPANY_ROWS = 2  # rows of each neighbour in a mixed check: what matters is that it is there

# How far a logit may be off, as a share of the largest golden logit of that adapter, and at least absolutely. In fp32
# other batch sizes, paddings and thread counts move logits by some 1e-6 of it; in bf16 (8 bits of mantissa) by about
# 1 %, in fp16 (11 bits) by 0.2 %. Quantised weights are dequantised the same way each time and add nothing.
TOLERANCE: dict[Precision, tuple[float, float]] = {"fp32": (1e-4, 1e-5), "bf16": (4e-2, 1e-3), "fp16": (1e-2, 5e-4)}

Forward = Callable[[Sequence[int | None], torch.Tensor, torch.Tensor, dict[str, torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True)
class Golden:
    """Token ids and mask (int64 [rows, length]), what else the model wants, and fp32 logits, all on the CPU.

    Logits are [rows, labels], or [rows, vocabulary] at each row's last real token for language models.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    extra: dict[str, torch.Tensor]
    logits: torch.Tensor

    @property
    def rows(self) -> int:
        """Number of golden rows."""
        return int(self.input_ids.shape[0])

    def some(self, rows: int) -> Golden:
        """The first `rows` of it."""
        extra = {name: value[:rows] for name, value in self.extra.items()}
        return Golden(self.input_ids[:rows], self.attention_mask[:rows], extra, self.logits[:rows])


def read_golden(directory: Path) -> Golden:
    """`golden.safetensors` of an adapter. Raises AdapterError if it is absent, broken or says nothing."""
    path = directory / "golden.safetensors"
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        found = "no file" if not path.is_file() else f"{path.stat().st_size} bytes"
        raise AdapterError(
            "golden.safetensors", found, "an adapter that cannot be checked is not served", "Train it again"
        )
    try:
        tensors = load_file(path)
        ids, mask, logits = (tensors.pop(name) for name in ("input_ids", "attention_mask", "logits"))
    except (SafetensorError, KeyError, OSError) as error:
        raise AdapterError("golden.safetensors", str(error)[:200], "it cannot be read", "Train it again") from error
    shaped = ids.ndim == 2 and mask.shape == ids.shape and logits.ndim == 2 and logits.shape[0] == ids.shape[0] > 0
    if not shaped or ids.is_floating_point() or not torch.isfinite(logits).all():
        raise AdapterError(
            "golden.safetensors", f"shapes {list(ids.shape)} and {list(logits.shape)}", "nothing to check"
        )
    return Golden(ids.long(), mask.long(), tensors, logits.float())


def check_alone(slot: int, golden: Golden, forward: Forward, precision: Precision) -> None:
    """Raise AdapterError unless `slot` gives its golden answers in batches of its own."""
    given = forward([slot] * golden.rows, golden.input_ids, golden.attention_mask, golden.extra)
    _compare("alone", golden, given, precision)


def check_beside(slot: int, golden: Golden, company: dict[int, Golden], forward: Forward, precision: Precision) -> None:
    """Raise AdapterError unless `slot` and its neighbours all give their golden answers in one mixed batch.

    `company` maps the slots of neighbours to their golden answers; rows without any adapter stand in the batch as well.
    """
    parties: list[tuple[int | None, Golden]] = [(slot, golden)]
    parties += [(other, answers.some(COMPANY_ROWS)) for other, answers in company.items()]
    parties.append((None, golden.some(COMPANY_ROWS)))
    slots, ids, mask, extra = _mixed(parties)
    given = forward(slots, ids, mask, extra)
    at = 0
    for who, answers in parties:
        if who is not None:
            place = "beside its neighbours" if who == slot else f"for the neighbour in slot {who}"
            _compare(place, answers, given[at : at + answers.rows], precision)
        at += answers.rows


def _mixed(
    parties: Sequence[tuple[int | None, Golden]],
) -> tuple[list[int | None], torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """All rows in one batch, padded on the right to the longest."""
    length = max(golden.input_ids.shape[1] for _, golden in parties)
    slots = [slot for slot, golden in parties for _ in range(golden.rows)]
    names = set.intersection(*(set(golden.extra) for _, golden in parties))
    extra = {name: torch.cat([_padded(golden.extra[name], length) for _, golden in parties]) for name in names}
    ids = torch.cat([_padded(golden.input_ids, length) for _, golden in parties])
    return slots, ids, torch.cat([_padded(golden.attention_mask, length) for _, golden in parties]), extra


def _padded(rows: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, length - rows.shape[1]))


def _compare(place: str, golden: Golden, given: Sequence[torch.Tensor], precision: Precision) -> None:
    """Raise AdapterError where logits are further off than the precision explains."""
    share, least = TOLERANCE[precision]
    allowed = max(least, share * float(golden.logits.abs().max()))
    for row, (wanted, got) in enumerate(zip(golden.logits, given, strict=True)):
        got = got.detach().float().cpu()
        if got.ndim == 2:  # a language model: [length, vocabulary]
            got = got[int(golden.attention_mask[row].sum()) - 1]
        off = float((got - wanted).abs().max()) if got.shape == wanted.shape else float("inf")
        if not off <= allowed:  # NaN is not allowed either
            raise AdapterError(
                f"golden answers {place}",
                f"row {row} is off by {off:.2g} where {allowed:.2g} is allowed in {precision}",
                "what would answer is not what was trained and measured",
                "Check that base, tokenizer and libraries are those of the training, or train again",
            )
