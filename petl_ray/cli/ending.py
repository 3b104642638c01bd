"""What a command started on this machine ends with it: a local Ray, and the servers on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from petl_ray.orchestration import Placement


@contextmanager
def farewell(placement: Placement) -> Iterator[None]:
    """After the block: Serve and the local Ray that the block started are taken down; clusters elsewhere are left alone."""
    try:
        yield
    finally:
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            if placement.ray == "local" and "ray.serve" in sys.modules:
                from petl_ray.serving.on_ray import stop

                stop()
            ray.shutdown()
