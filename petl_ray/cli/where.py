"""Where a run happens: what `--cluster` means."""

from __future__ import annotations

from pathlib import Path

from petl_ray.errors import PlanError
from petl_ray.orchestration import Placement, load_placement

SHORT_NAMES = ("auto", "local", "none")


def placement(name: str) -> Placement:
    """The placement that `--cluster` names: a short name, or a YAML file. Raises PlanError for what is neither."""
    if name in SHORT_NAMES:
        return Placement(name=name, ray=name)
    path = Path(name)
    if not path.exists() and path.parent == Path() and not path.suffix:
        near = ", ".join(str(file) for file in sorted(Path("cluster").glob("*.yaml")))
        do = f"Choose {', '.join(SHORT_NAMES)}, or a YAML file{f': {near}' if near else ''}"
        raise PlanError(f"--cluster {name}", "neither a short name nor a file", do=do)
    return load_placement(path)
