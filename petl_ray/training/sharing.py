"""The rule by which several occupants may share one pass of the base.

On a CPU two segments share a pass only where they are padded to one length. Then every product and every sum of an
occupant has the shape it has when it is alone, and each row of a product has the same bits whatever rows come along.
That is tried out with the base's own shapes; where a processor's libraries do otherwise nobody shares. So an occupant's
outcome does not depend on its neighbours, bit for bit: a pack may be filled by whoever comes, and resumed by whoever is
left. On a GPU segments of about one length share a pass, and small ones of any length, padded to the longest; outcomes
agree to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from petl_ray.bank.memory import PASS_TOKENS
from petl_ray.models import LoadedBase
from petl_ray.models.products import frozen_matrix, rows_are_independent


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
        linears = [module for module in loaded.model.modules() if isinstance(module, torch.nn.Linear)]
        matrices = [frozen_matrix(module) for module in linears]
        # who multiplies by itself promises nothing about its rows
        shared = None not in matrices and rows_are_independent(
            ((module.out_features, module.in_features), _kind(module.weight, loaded)) for module in linears
        )
        return cls(
            shared=shared, alike=True, tokens=PASS_TOKENS["fp32" if loaded.compute_dtype == torch.float32 else "other"]
        )


def _kind(weight: torch.Tensor, loaded: LoadedBase) -> torch.dtype:
    """The type a weight is multiplied in: its own, or that of the base where it is packed."""
    return weight.dtype if weight.is_floating_point() else loaded.compute_dtype
