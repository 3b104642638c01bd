"""Whether a champion can answer a candidate's rows: not hindered by other labels or another base, but by a lost one."""

from __future__ import annotations

from collections.abc import Callable

from petl_ray.artifact import Adapter
from petl_ray.errors import BaseModelError
from petl_ray.models.sources import directory_digest, locate
from petl_ray.spec import Pinned


def why_lost(base: Pinned) -> str | None:
    """Why the bytes that `base` pins cannot be read where it says; None if they can. Hashes all of them."""
    what = f"its base {base.digest[:12]} is gone"
    try:
        found = directory_digest(locate(base))
    except BaseModelError as error:
        return f"{what} ({error.what}: {error.found})"
    except OSError as error:
        return f"{what} ({base.uri}: {error.strerror})"
    return None if found == base.digest else f"{what} ({base.uri}: it holds another one now)"


def why_unmeasurable(
    champion: Adapter, task_type: str, base: Pinned, lost: Callable[[Pinned], str | None] = why_lost
) -> str | None:
    """Why `champion` cannot be measured beside a candidate for a `task_type` task on `base`; None if it can.

    The champion's own base is looked for with `lost`, and only if it is another than `base`.
    """
    if champion.task_type != task_type:
        return f"it is a {champion.task_type} adapter and the task is {task_type} now"
    return None if champion.base.digest == base.digest else lost(champion.base)
