"""The training passes that a session really makes, seen from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from petl_ray.bank import Segment
from petl_ray.training.session import Session


@contextmanager
def passes_of(session: Session) -> Iterator[list[list[Segment]]]:
    """The segments of each pass that is made within the block, in order; validation is not among them."""
    made: list[list[Segment]] = []
    forward = session._bank.forward

    def seen(segments: Sequence[Segment], **how: Any) -> list[torch.Tensor]:
        if torch.is_grad_enabled():
            made.append(list(segments))
        return forward(segments, **how)

    session._bank.forward = seen  # type: ignore[method-assign]
    try:
        yield made
    finally:
        session._bank.forward = forward  # type: ignore[method-assign]
