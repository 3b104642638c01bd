"""The loop: one optimizer step of every occupant that is under way, in as few passes of the base as they can share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from petl_ray.bank import Bank
from petl_ray.errors import PetlRayError
from petl_ray.models.faults import is_device_fault, is_out_of_memory
from petl_ray.training.failures import as_failure, let_go
from petl_ray.training.memory import TokenBudget, too_long
from petl_ray.training.occupant import Occupant
from petl_ray.training.optimizer import norms, stride
from petl_ray.training.rounds import Round, plan_rounds, round_depth, round_length, round_tokens
from petl_ray.training.sharing import Sharing


def take_step(
    bank: Bank,
    live: Sequence[Occupant],
    budget: TokenBudget,
    sharing: Sharing,
    after_step: Callable[[Occupant], None],
) -> dict[Occupant, PetlRayError]:
    """One step of each; who failed and why. A diverged one is only marked, the others go on.

    CapacityError where a single row of an occupant does not fit into memory, TrainingError where its pass fails for
    another reason, and whatever `after_step` raises for it. Raises what is nobody's fault as it came (see `is_nobodys`).
    """
    began = time.perf_counter()
    going, failed = list(live), dict[Occupant, PetlRayError]()
    while going and (blocked := _attempt(bank, going, budget, sharing)) is not None:
        if isinstance(blocked, _Stopped):
            failed[blocked.occupant] = blocked.error
            going.remove(blocked.occupant)
    seconds = (time.perf_counter() - began) / max(1, len(going))
    _finish(going)
    for each in going:
        each.elapsed_s += seconds
        try:
            after_step(each)
        except PetlRayError as error:  # a lost claim, a cancelled run, a full store: this occupant's own end
            failed[each] = let_go(error)
    return failed


def _finish(going: Sequence[Occupant]) -> None:
    """Clip and step, all side by side; who is not finite stops alone. The device is asked for figures once."""
    if not going:
        return
    losses, optimizers = zip(*(each.gathered() for each in going), strict=True)
    figures = torch.stack([*losses, *norms(optimizers)]).tolist()
    sized = list(zip(going, figures, figures[len(going) :], strict=False))
    strides = [each.next_stride(loss, size) for each, loss, size in sized]
    stride([taken for taken in strides if taken is not None])
    for (each, loss, _), taken in zip(sized, strides, strict=True):
        if taken is not None:
            each.move_on(loss, taken)


class _Halved:
    """Memory ran out; the budget is smaller now."""


@dataclass(frozen=True)
class _Stopped:
    """One occupant cannot go on; the others begin the step again."""

    occupant: Occupant
    error: PetlRayError


def _attempt(bank: Bank, live: Sequence[Occupant], budget: TokenBudget, sharing: Sharing) -> _Halved | _Stopped | None:
    """All forward and backward passes of one step; what stood in the way, None if nothing did."""
    for each in live:
        each.begin_step()
    for round_ in plan_rounds(live, budget.tokens, sharing, budget.together):
        try:
            _pass(bank, round_)
            budget.made(round_[0][0].late, round_depth(round_), round_length(round_), round_tokens(round_))
        except Exception as error:  # whatever breaks one occupant's pass must not end its neighbours'
            if not is_out_of_memory(error):
                if is_nobodys(error, live):
                    raise
                return _found(bank, round_, error)
            tokens = round_tokens(round_)
            if sum(len(rows) for _, rows in round_) == 1:
                if is_nobodys(error, live):
                    raise
                return _Stopped(round_[0][0], too_long(tokens, error))
            budget.halve(tokens, len(round_))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return _Halved()
    return None


def is_nobodys(error: Exception, live: Sequence[Occupant]) -> bool:
    """Whether no occupant alone can be blamed: the device is at fault, or other workers wait for what this one owes the
    same step, and only its end makes them begin again."""
    return is_device_fault(error) or any(each.peers.count > 1 for each in live)


def _found(bank: Bank, round_: Round, error: Exception) -> _Stopped:
    """Whose pass fails alone as well; `error` again where nobody's does, since nobody knows then where the slots stand."""
    for each, rows in round_:
        try:
            _pass(bank, [(each, rows)])
        except Exception as alone:  # whatever it is, it is this one's own: its pass fails without the others
            if is_device_fault(alone):
                raise
            if not is_out_of_memory(alone):
                return _Stopped(each, as_failure(each.rows.name, alone))
    raise error


def _pass(bank: Bank, round_: Round) -> None:
    depth = round_depth(round_)
    padded = [each.segment(rows, depth) for each, rows in round_]
    made = bank.forward([segment for segment, _ in padded], hidden=round_[0][0].late)
    losses = [each.loss(mine, batch) for (each, _), mine, (_, batch) in zip(round_, made, padded, strict=True)]
    torch.autograd.backward(losses)
