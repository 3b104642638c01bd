"""Memory of passes: foreseen from a question, and held in a budget that shrinks where it runs out."""

from __future__ import annotations

from dataclasses import dataclass, field

from petl_ray.bank.memory import Steps, makes_logits_late, memory_estimate
from petl_ray.errors import CapacityError
from petl_ray.methods.table import lowest_adapted_layer
from petl_ray.models import LoadedBase
from petl_ray.tasks.late import CHUNK_BYTES
from petl_ray.training.failures import let_go
from petl_ray.training.prefixes import MOST_BYTES
from petl_ray.training.spec import TrainSpec


def too_long(tokens: int, reason: BaseException) -> CapacityError:
    """The error for a single row that memory does not hold."""
    found, do = f"one row of {tokens} tokens does not fit", "Shorten max_length or use more memory"
    error = CapacityError("memory", found, str(reason)[:200], do)
    error.__cause__ = reason
    let_go(error)  # its frames hold every tensor of the pass
    return error


def slot_estimate(loaded: LoadedBase, spec: TrainSpec, labels: int) -> int:
    """Bytes of one slot for `spec` with so many labels, beside the base; see `petl_ray.bank.memory_estimate`."""
    tokens = min(spec.batch_size * spec.max_length, spec.tokens_per_step or 1 << 62)
    return memory_estimate(loaded, spec.method, labels, tokens)


def steps_of(loaded: LoadedBase, spec: TrainSpec, workers: int = 1) -> Steps:
    """How `spec` takes its steps where so many workers divide the rows of each."""
    rows = min(spec.batch_size, -(-spec.rows_per_step // workers))
    tokens = min(rows * spec.max_length, spec.tokens_per_step or 1 << 62)
    late_bytes = CHUNK_BYTES if makes_logits_late(loaded, spec.method) else None
    again = spec.gradient_checkpointing
    kept_bytes = MOST_BYTES if not again and lowest_adapted_layer(loaded.model, spec.method) else 0
    return Steps(tokens, spec.max_length, again, late_bytes, kept_bytes)


@dataclass
class TokenBudget:
    """Padded tokens that one forward pass may hold: `tokens` of one occupant, `together` of several; None while nothing
    has failed yet.

    `longest` are those of the longest pass that was made, by whether its logits came late, the layer it began behind and
    the tokens of its rows.
    """

    tokens: int | None = None
    together: int | None = None
    halvings: int = 0
    longest: dict[tuple[bool, int, int], int] = field(default_factory=dict)

    def made(self, late: bool, frozen_depth: int, row_tokens: int, tokens: int) -> None:
        """A pass over `tokens` was made."""
        kind = late, frozen_depth, row_tokens
        self.longest[kind] = max(tokens, self.longest.get(kind, 0))

    def halve(self, failed_tokens: int, occupants: int = 1) -> None:
        """A pass over `failed_tokens` of so many occupants ran out of memory: from now on at most half of that.

        Several part before anybody is cut: only who does not fit alone takes its rows in smaller passes.
        """
        half = max(1, failed_tokens // 2)
        self.tokens, self.together = (half, self.together) if occupants == 1 else (self.tokens, half)
        self.halvings += 1
