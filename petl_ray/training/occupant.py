"""One occupant of a slot: its question, its rows, its optimizer and how far it has come.

Everything random follows from (seed, step): the order of batches and the dropout masks are found from the step number,
so a checkpoint holds no generator state and a step that is tried again after running out of memory draws the same, as
long as its batch fits in one pass; where it must be cut, each part draws masks of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from petl_ray.bank import Bank, Segment
from petl_ray.errors import CorruptionError
from petl_ray.fingerprint import sha256_of
from petl_ray.models import LoadedBase
from petl_ray.tasks import DIRECTIONS, Batch, Encoded, LateLogits, Outcomes, RowScore, measure
from petl_ray.training.batching import batches_of_epoch, horizon, padded_lengths, split_to_budget, steps_of_epoch
from petl_ray.training.checkpoint import part, prefixed
from petl_ray.training.optimizer import SlotOptimizer, Stride
from petl_ray.training.peers import Alone, Peers
from petl_ray.training.prefixes import Prefix, Prefixes
from petl_ray.training.rows import Rows
from petl_ray.training.schedule import rate_factor
from petl_ray.training.spec import TrainSpec

# Padded tokens of one forward pass while validating, where the question gives no bound. On a CPU larger ones leave the
# caches: 300 rows of 14 tokens through MiniLM in bf16 take 335 ms in passes of 512, 365 of 1,024, 483 of 4,096.
VALIDATION_TOKENS = {"cpu": 512, "cuda": 4096}
HISTORY_POINTS = 200
# fp16 has no numbers below 6e-8: gradients are carried through the base this much larger, and made small again in fp32
HALF_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class Best:
    """The best validation so far and the weights that gave it."""

    score: float
    step: int
    weights: dict[str, torch.Tensor]


class Occupant:
    """A slot being trained. Raises AdapterError from the bank where the method does not fit the base."""

    def __init__(
        self,
        key: str,
        spec: TrainSpec,
        rows: Rows,
        bank: Bank,
        slot: int,
        loaded: LoadedBase,
        prefixes: Prefixes,
        peers: Peers | None = None,
    ) -> None:
        self.key, self.spec, self.rows, self.slot = key, spec, rows, slot
        self.peers: Peers = peers or Alone()
        self.steps = horizon(len(rows.train), spec.rows_per_step, spec.epochs)
        self.step = 0
        self.scored_step = -1
        self.diverged = False
        self.metrics: dict[str, float] = {}
        self.best: Best | None = None
        self.tokens = 0
        self.elapsed_s = 0.0
        self.history: list[dict[str, float]] = []
        self._bank, self._device = bank, loaded.device
        self._scale = HALF_LOSS_SCALE if loaded.compute_dtype == torch.float16 else 1.0
        self._pad_id = loaded.pad_id
        self._lengths = rows.lengths
        self._padded_lengths = padded_lengths(self._lengths, spec.rows_per_step, spec.max_length, loaded)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self._units = self._padded_tokens = 0
        self._loss = torch.zeros(())
        bank.fill(slot, spec.method, rows.task.head_size(rows.labels), spec.seed)
        self._head = bank.frozen_head(slot)
        self.prefix = prefixes.enter(bank.frozen_depth(slot), rows, self)
        self._prefixes, self._prefix_at = prefixes, {self.frozen_depth: self.prefix}
        self.trained_parameters = bank.flat(slot).values.numel()
        self._in_force = spec.in_force(0, self.steps)
        self._optimizer = SlotOptimizer(bank.flat(slot), self._in_force)

    def question(self, step: int) -> str:
        """Names what has been trained on what until `step`, so that a foreign checkpoint is not continued by mistake.

        What is to change from there on is left out: who has a history in common may part ways.
        """
        return sha256_of({"spec": self.spec.begun(step, self.steps), "rows": [row.id for row in self.rows.train]})

    # -- one optimizer step -------------------------------------------------------------------------------------

    def parts(self, tokens: int | None) -> list[list[int]]:
        """This worker's rows of the next step, cut into micro-batches of at most `tokens` padded tokens."""
        batch = self._rows_of_step()
        bounds = [bound for bound in (tokens, self.spec.tokens_per_step) if bound is not None]
        mine = batch[self.peers.rank :: self.peers.count]
        return split_to_budget(mine, self._padded_lengths, self.spec.batch_size, min(bounds, default=None))

    def longest(self, rows: Sequence[int]) -> int:
        """Tokens that some training rows are padded to."""
        return max(self._padded_lengths[row] for row in rows)

    def segment(self, rows: Sequence[int], depth: int) -> tuple[Segment, Batch]:
        """Some training rows padded to one length, on the base's device, for a pass that begins behind `depth` layers."""
        if depth not in self._prefix_at:
            self._prefix_at[depth] = self._prefixes.enter(depth, self.rows, self)
        return self._segment([self.rows.train[row] for row in rows], self._prefix_at[depth], self.longest(rows))

    def begin_step(self) -> None:
        """Forget gradients and seed this step's dropout: nothing of an attempt that failed remains."""
        self._optimizer.forget()
        self._loss, self._padded_tokens = torch.zeros((), device=self._device), 0
        batch = [self.rows.train[row] for row in self._rows_of_step()]
        self._units = sum(_units(row.target) for row in batch)
        if getattr(self.spec.method, "dropout", 0.0):
            seed = int(sha256_of([self.spec.seed, self.step, self.peers.rank])[:15], 16)
            self._bank.set_rng_state(self.slot, torch.Generator().manual_seed(seed).get_state())

    @property
    def frozen_depth(self) -> int:
        """How many layers lie below where passes begin."""
        return self.prefix.depth if self.prefix is not None else 0

    @property
    def late(self) -> bool:
        """Whether the bank is asked for hidden states, and logits are made where they are scored."""
        return self._head is not None

    def loss(self, made: torch.Tensor, batch: Batch) -> torch.Tensor:
        """From what the bank made of a part (see `late`) its share of the step's mean loss, scaled in fp16: all parts of
        all workers add up to it."""
        loss = self.rows.task.loss_sum(self._logits(made), batch) / max(self._units, 1)
        self._loss += loss.detach()
        self._padded_tokens += int(batch.attention_mask.numel())
        return loss * self._scale

    def gathered(self) -> tuple[torch.Tensor, SlotOptimizer]:
        """The step's loss, a scalar, and its gradients with their optimizer: added up over workers, in their own size."""
        if self.peers.count > 1:
            self._add_up()
        self._optimizer.shrink(self._scale)
        return self._loss.float(), self._optimizer

    def next_stride(self, loss: float, size: float) -> Stride | None:
        """The step that gradients of this size ask for; None, and no more steps, where one of them is not finite."""
        if not (math.isfinite(loss) and math.isfinite(size)):
            self.diverged = True
            self._optimizer.forget()
            return None
        self._enter_phase()
        factor = rate_factor(self.step, self.steps, self.spec.warmup_share, self.spec.schedule)
        return Stride(self._optimizer, factor, size)

    def move_on(self, loss: float, taken: Stride) -> None:
        """Count a step that was taken."""
        factor, size = taken.factor, taken.norm
        self._optimizer.forget()
        self.metrics["train_loss"] = loss
        self.step += 1
        self.tokens += self._padded_tokens
        if self.step % max(1, self.steps // HISTORY_POINTS) == 0 or self.step == self.steps:
            rate = self._in_force.learning_rate * factor
            self.history.append(self._point(train_loss=loss, gradient_norm=size, learning_rate=rate))

    # -- validation -----------------------------------------------------------------------------------------------

    def validate(self, tokens: int | None = None) -> dict[str, float]:
        """Score and mean loss on the validation rows; remembers the weights if they are the best so far."""
        bounds = (tokens, self.spec.tokens_per_step, VALIDATION_TOKENS[self._device.type])
        scores = self._score_validation(min(bound for bound in bounds if bound is not None))
        outcomes = Outcomes.of(scores)
        loss = measure("loss", outcomes)
        if not math.isfinite(loss):
            self.diverged = True
            return {"diverged": 1.0}
        score = measure(self.spec.metric, outcomes, max(len(self.rows.labels), 2))
        self.metrics |= {"score": score, "loss": loss}
        self.scored_step = self.step
        self.history.append(self._point(score=score, validation_loss=loss))
        sign = 1.0 if DIRECTIONS[self.spec.metric] == "max" else -1.0
        if self.spec.keep == "last" or self.best is None or sign * score > sign * self.best.score:
            self.best = Best(score, self.step, self._bank.state(self.slot))
        return self.metrics

    # -- continuing -------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and facts that continue this occupant, now or in another process."""
        tensors = prefixed(self._bank.state(self.slot), "weights") | self._optimizer.moments()
        facts: dict[str, Any] = {
            "question": self.question(self.step), "step": self.step, "scored_step": self.scored_step, "metrics": self.metrics,
            "tokens": self.tokens, "elapsed_s": self.elapsed_s, "history": self.history, "best": None,
        }  # fmt: skip
        if self.best is not None:
            tensors |= prefixed(self.best.weights, "best")
            facts["best"] = {"score": self.best.score, "step": self.best.step}
        return tensors, facts

    def restore(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Continue from a state. Raises CorruptionError if it is another question's."""
        if facts.get("question") != self.question(int(facts["step"])):
            why = "it belongs to another question or other rows"
            raise CorruptionError(f"checkpoint of {self.key}", "a foreign question", why, "Let the step begin again")
        self._bank.restore(self.slot, part(tensors, "weights"))
        self._optimizer.restore(tensors, int(facts["step"]))
        self.step, self.scored_step = int(facts["step"]), int(facts["scored_step"])
        self.metrics, self.tokens = dict(facts["metrics"]), int(facts["tokens"])
        self.elapsed_s, self.history = float(facts["elapsed_s"]), list(facts["history"])
        if best := facts["best"]:
            self.best = Best(float(best["score"]), int(best["step"]), part(tensors, "best"))

    def wear_best(self) -> None:
        """Put the weights that are to be kept into the slot."""
        if self.best is not None:
            self._bank.restore(self.slot, self.best.weights)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _enter_phase(self) -> None:
        """Let the optimizer follow the phase that this step belongs to."""
        if self.spec.phases and self._in_force != (now := self.spec.in_force(self.step, self.steps)):
            self._in_force = now
            self._optimizer.heed(now)

    def _rows_of_step(self) -> list[int]:
        epoch, index = divmod(self.step, steps_of_epoch(len(self.rows.train), self.spec.rows_per_step))
        if self._epoch[0] != epoch:
            batches = batches_of_epoch(self._lengths, self.spec.rows_per_step, self.spec.seed, epoch)
            self._epoch = (epoch, batches)
        return self._epoch[1][index]

    def _segment(
        self, rows: Sequence[Encoded], prefix: Prefix | None, pad_to: int | None = None
    ) -> tuple[Segment, Batch]:
        task, states = self.rows.task, None
        batch = task.collate(rows, self._pad_id, pad_to)
        extra = {name: tensor.to(self._device) for name, tensor in batch.extra.items()}
        ids, mask = batch.input_ids.to(self._device), batch.attention_mask.to(self._device)
        if prefix is not None:
            states = prefix.states(rows, ids.shape[1])
        return Segment(self.slot, ids, mask, extra, states), batch

    @torch.no_grad()
    def _score_validation(self, tokens: int) -> list[RowScore]:
        rows = self.rows.validation
        lengths = [row.length_tokens for row in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        scores: list[RowScore] = []
        for indices in split_to_budget(order, lengths, len(rows), tokens):
            segment, batch = self._segment([rows[index] for index in indices], self.prefix)
            made = self._bank.forward([segment], hidden=self.late)[0]
            scores += self.rows.task.score_rows(self._logits(made), batch)
        return scores

    def _logits(self, made: torch.Tensor) -> torch.Tensor | LateLogits:
        return made if self._head is None else LateLogits(made, self._head.weight, self._head.bias)

    def _add_up(self) -> None:
        both = torch.cat([self._loss.reshape(1).float(), self._optimizer.gradients])
        self.peers.add_up(both)
        self._loss = both[0].clone()
        self._optimizer.gradients.copy_(both[1:])

    def _point(self, **facts: float) -> dict[str, float]:
        return {"step": self.step, "tokens": self.tokens, "elapsed_s": round(self.elapsed_s, 3), **facts}


def _units(target: int | tuple[int, ...] | None) -> int:
    if isinstance(target, tuple):
        return sum(token >= 0 for token in target)
    return 1
