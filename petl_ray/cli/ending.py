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


def stay(url: str) -> None:
    """Say where it answers and wait for Ctrl-C or a termination signal."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    remark(f"Serving at {url}; Ctrl-C stops it.")
    while not stop.wait(0.5):
        pass
    remark("Stopping.")
