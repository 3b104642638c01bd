"""What a search asks of a pack: one trial, to its next rung."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

from petl_ray.spec import Spec
from petl_ray.verb import load


@dataclass(frozen=True)
class Order:
    """What a trial asks of its pack: train `key` from `rung` - 1 (or a checkpoint, or the start) until `target`."""

    search: str
    number: int
    rung: int
    target: float
    recipe: dict[str, Any]
    recipe_spec: str
    labels: int
    life: int = 0

    @property
    def key(self) -> str:
        """The trial's name within the pack, another one in every life."""
        return life_key(f"{self.search}/{self.number}", self.life)

    def spec(self) -> Spec:
        """The training spec of the trial."""
        return cast("type[Spec]", load(self.recipe_spec)).model_validate(self.recipe)

    def plain(self) -> dict[str, Any]:
        """The order as JSON."""
        return asdict(self)


def life_key(name: str, life: int) -> str:
    """What a trial is called in a pack after it has become a copy of another `life` times."""
    return f"{name}.{life}" if life else name
