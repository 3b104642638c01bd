"""Which micro-batches of several occupants share one pass of the base, and to what length rows are padded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from petl_ray.training.occupant import Occupant
from petl_ray.training.sharing import Sharing

JOINED_TOKENS = 4096  # up to here a GPU waits for launches: one pass from below costs less than two from higher up

Round = list[tuple[Occupant, list[int]]]  # each occupant at most once, with the training rows of its micro-batch


def plan_rounds(
    live: Sequence[Occupant], tokens: int | None, sharing: Sharing, together: int | None = None
) -> list[Round]:
    """The next step's micro-batches in rounds, each occupant once a round at most.

    `tokens` is what memory was found to hold of one micro-batch, `together` what it was found to hold of several; a single
    one may be larger than the rule's bound.
    """
    parts = {each: each.parts(tokens) for each in live}
    bound = min((one for one in (tokens, together, sharing.tokens) if one is not None), default=None)
    rounds: list[Round] = []
    for turn in range(max((len(mine) for mine in parts.values()), default=0)):
        shelves: dict[tuple[int, ...], list[Round]] = {}
        for place, (each, mine) in enumerate(parts.items()):
            if turn < len(mine):
                longest = each.longest(mine[turn])
                length = longest if sharing.alike else _class(longest)
                alike = (length, each.late, each.frozen_depth)  # what comes of a pass, and where it begins
                shelf = shelves.setdefault((*alike, 0 if sharing.shared else place), [[]])
                if shelf[-1] and bound is not None and round_tokens([*shelf[-1], (each, mine[turn])]) > bound:
                    shelf.append([])
                shelf[-1].append((each, mine[turn]))
        found = [one for key in sorted(shelves) for one in shelves[key]]
        rounds += found if sharing.alike else _joined(found, min(JOINED_TOKENS, bound or JOINED_TOKENS))
    return rounds


def _joined(rounds: Sequence[Round], bound: int) -> list[Round]:
    """Rounds of different lengths, or that begin behind different layers, in one pass where both are small: it begins
    behind the fewest."""
    joined: list[Round] = []
    for one in rounds:
        before = joined[-1] if joined else None
        if before and before[0][0].late == one[0][0].late and round_tokens([*before, *one]) <= bound:
            joined[-1] = [*before, *one]
        else:
            joined.append(one)
    return joined


def round_depth(round_: Round) -> int:
    """How many layers a pass begins behind: as many as are frozen for everybody in it."""
    return min(each.frozen_depth for each, _ in round_)


def round_tokens(round_: Round) -> int:
    """Padded tokens of one pass."""
    return sum(len(rows) for _, rows in round_) * round_length(round_)


def round_length(round_: Round) -> int:
    """Tokens that the rows of one pass are padded to."""
    return max(each.longest(rows) for each, rows in round_)


def _class(length: int) -> int:
    """Rows of a GPU's pass are padded to at most 1.4 times their length: lengths between two powers of the square root
    of two are of one class."""
    return math.ceil(2 * math.log2(length) - 1e-9)
