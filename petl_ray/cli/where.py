"""Where a run happens: what `--cluster` means."""

from __future__ import annotations

from pathlib import Path

from petl_ray.orchestration import Placement, load_placement

SHORT_NAMES = ("local", "auto", "none")


def placement(name: str) -> Placement:
    """The placement that `--cluster` names: a short name, or a YAML file."""
    return Placement(name=name, ray=name) if name in SHORT_NAMES else load_placement(Path(name))
