"""Which micro-batches of several occupants share one pass of the base, and to what length rows are padded.

On a CPU two segments share a pass only where they are padded to one length. Then every product and every sum of an
occupant has the shape it has when it is alone, and each row of a product has the same bits whatever rows come along.
That is tried out with the base's own shapes; where a processor's libraries do otherwise nobody shares. So an occupant's
outcome does not depend on its neighbours, bit for bit: a pack may be filled by whoever comes, and resumed by whoever is
left. On a GPU all segments share a pass, padded to the longest, and outcomes agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petl_ray.models import LoadedBase
from petl_ray.models.products import rows_are_independent
from petl_ray.training.occupant import Occupant

Round = list[tuple[Occupant, list[int]]]  # each occupant at most once, with the training rows of its micro-batch


@dataclass(frozen=True)
class Sharing:
    """The rule on one device: whether passes are shared at all, by segments of equal length only (`alike`) or by any,
    and up to how many padded tokens.

    Measured on two CPUs with MiniLM: passes of 512 tokens (fp32) and 1,024 (bf16) have all that sharing gives (1.8 times
    the speed at 1 x 24 tokens a slot, 1.1 to 1.3 times at 8 x 24), larger ones leave the caches.
    """

    shared: bool
    alike: bool
    tokens: int | None

    @classmethod
    def of(cls, loaded: LoadedBase) -> Sharing:
        """The rule for a base where it lies."""
        if loaded.device.type != "cpu":
            return cls(shared=True, alike=False, tokens=None)
        plain = loaded.base.quantization == "none"  # how packed weights are multiplied is nobody's promise
        shared = plain and rows_are_independent(
            module.weight for module in loaded.model.modules() if isinstance(module, torch.nn.Linear)
        )
        return cls(shared=shared, alike=True, tokens=512 if loaded.compute_dtype == torch.float32 else 1024)


def plan_rounds(live: Sequence[Occupant], tokens: int | None, sharing: Sharing) -> list[Round]:
    """The next step's micro-batches in rounds, each occupant once a round at most.

    `tokens` is what memory was found to hold in one pass; a single micro-batch may be larger than the rule's bound.
    """
    parts = {each: each.parts(tokens) for each in live}
    bound = min((one for one in (tokens, sharing.tokens) if one is not None), default=None)
    rounds: list[Round] = []
    for turn in range(max((len(mine) for mine in parts.values()), default=0)):
        shelves: dict[tuple[int, int], list[Round]] = {}
        for place, (each, mine) in enumerate(parts.items()):
            if turn < len(mine):
                length = each.longest(mine[turn]) if sharing.alike else 0
                shelf = shelves.setdefault((length, 0 if sharing.shared else place), [[]])
                if shelf[-1] and bound is not None and round_tokens([*shelf[-1], (each, mine[turn])]) > bound:
                    shelf.append([])
                shelf[-1].append((each, mine[turn]))
        rounds += [one for key in sorted(shelves) for one in shelves[key]]
    return rounds


def round_tokens(round_: Round) -> int:
    """Padded tokens of one pass."""
    return sum(len(rows) for _, rows in round_) * max(each.longest(rows) for each, rows in round_)
