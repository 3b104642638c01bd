"""The loop: occupants trained side by side, one base forward for all of them in every round of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from petl_ray.bank import Bank
from petl_ray.errors import CapacityError
from petl_ray.training.memory import TokenBudget, is_out_of_memory
from petl_ray.training.occupant import Occupant

Round = list[tuple[Occupant, list[int]]]  # each occupant at most once, with the training rows of its micro-batch


def train_until(
    bank: Bank, targets: Mapping[Occupant, int], budget: TokenBudget, after_step: Callable[[Occupant], None]
) -> None:
    """Train each occupant up to its target step. A diverged one stops alone; `after_step` may raise to stop all.

    Raises CapacityError where a single row does not fit into memory.
    """
    while live := [each for each, target in targets.items() if not each.diverged and each.step < target]:
        began = time.perf_counter()
        _take_step(bank, live, budget)
        seconds = (time.perf_counter() - began) / len(live)
        for each in live:
            each.elapsed_s += seconds
            after_step(each)


def plan_rounds(live: Sequence[Occupant], tokens: int | None) -> list[Round]:
    """The next step's micro-batches in rounds of at most `tokens` padded tokens, each occupant once a round at most."""
    parts = {each: each.parts(tokens) for each in live}
    rounds: list[Round] = []
    for turn in range(max((len(mine) for mine in parts.values()), default=0)):
        fresh: Round = []
        for each, mine in parts.items():
            if turn >= len(mine):
                continue
            if tokens is not None and fresh and _tokens([*fresh, (each, mine[turn])]) > tokens:
                rounds.append(fresh)
                fresh = []
            fresh.append((each, mine[turn]))
        rounds.append(fresh)
    return rounds


def _take_step(bank: Bank, live: Sequence[Occupant], budget: TokenBudget) -> None:
    while not _attempt(bank, live, budget):
        pass
    for each in live:
        each.finish_step()


def _attempt(bank: Bank, live: Sequence[Occupant], budget: TokenBudget) -> bool:
    """All forward and backward passes of one step; False if memory ran out and the budget was halved."""
    for each in live:
        each.begin_step()
    for round_ in plan_rounds(live, budget.tokens):
        try:
            _pass(bank, round_)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if sum(len(rows) for _, rows in round_) == 1:
                found = f"one row of {_tokens(round_)} tokens does not fit"
                raise CapacityError(
                    "memory", found, str(error)[:200], "Shorten max_length or use more memory"
                ) from error
            budget.halve(_tokens(round_))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return False
    return True


def _pass(bank: Bank, round_: Round) -> None:
    padded = [each.segment(rows) for each, rows in round_]
    logits = bank.forward([segment for segment, _ in padded])
    losses = [each.loss(mine, batch) for (each, _), mine, (_, batch) in zip(round_, logits, padded, strict=True)]
    torch.autograd.backward(torch.stack(losses).sum())


def _tokens(round_: Round) -> int:
    return sum(len(rows) for _, rows in round_) * max(each.longest(rows) for each, rows in round_)
