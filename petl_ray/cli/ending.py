"""How a command ends: what it started on this machine (a local Ray, servers on it) stays until Ctrl-C or goes with it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from petl_ray.cli.screen import remark
from petl_ray.orchestration import Placement


@contextmanager
def farewell(placement: Placement) -> Iterator[None]:
    """After the block: Serve and the local Ray that the block started are taken down.

    Clusters elsewhere are left alone, and so is a Ray that this process ran before.
    """
    before = _connected()
    try:
        yield
    finally:
        if _connected() and not before:
            import ray

            if placement.ray == "local" and "ray.serve" in sys.modules:
                from petl_ray.serving.on_ray import stop

                stop()
            ray.shutdown()


def _connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def stay(url: str) -> None:
    """Say where it answers and wait for Ctrl-C or a termination signal."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    remark(f"Serving at {url}; Ctrl-C stops it.")
    while not stop.wait(0.5):
        pass
    remark("Stopping.")
