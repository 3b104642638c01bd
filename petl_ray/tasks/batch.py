"""The values every task type speaks in: an encoded row, a padded batch, the score of a row, and the Task protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from petl_ray.tasks.late import LateLogits

IGNORED = -100  # the target that no loss counts, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Encoded:
    """One row as tokens. `target` is the label index, or for language models the token that each position must give.

    `truncated` says that the row was cut to the length limit. `target` is None where the row carries no answer.
    """

    id: str
    input_ids: tuple[int, ...]
    target: int | tuple[int, ...] | None
    token_type_ids: tuple[int, ...] | None = None
    truncated: bool = False

    @property
    def length_tokens(self) -> int:
        """Tokens of this row before padding."""
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length: int64 tensors [rows, length]; `targets` [rows] or [rows, length].

    `units` is what the mean loss divides by: rows for classification, scored tokens for language models.
    """

    ids: tuple[str, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor | None
    units: int
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RowScore:
    """What one row came to: its summed loss over `units`, the predicted index and the true one.

    For language models `prediction` is 1 where greedy decoding gives exactly the completion, and `reference` is 1.
    `probability` is that of the prediction (classification) or of the whole completion (language models).
    """

    id: str
    reference: int
    prediction: int
    probability: float
    loss_sum: float
    units: int


class Task(Protocol):
    """What a task type means. Implementations are stateless."""

    name: str
    metrics: tuple[str, ...]

    def encode(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int, template: str = "{prompt}"
    ) -> list[Encoded]:
        """Rows as tokens, in order, each at most `max_length` long."""

    def collate(self, encoded: Sequence[Encoded], pad_id: int, pad_to: int | None = None) -> Batch:
        """Rows padded to the longest of them, or to `pad_to` tokens if that is more."""

    def head_size(self, labels: Sequence[str]) -> int:
        """Outputs of the head that a slot needs; 0 where the base's own head answers."""

    def loss_sum(self, logits: torch.Tensor | LateLogits, batch: Batch) -> torch.Tensor:
        """Scalar fp32: the loss summed over the batch's units. Divide by `units` for the mean."""

    def score_rows(self, logits: torch.Tensor | LateLogits, batch: Batch) -> list[RowScore]:
        """One RowScore a row, in order; the batch must carry targets."""
