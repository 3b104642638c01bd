"""Who executes jobs. Here: this process, for tests, debugging and effects; `on_ray.py` hands them to Ray workers."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from petl_ray.orchestration.placement import Placement, check_capacity
from petl_ray.orchestration.pulse import Pulse
from petl_ray.orchestration.work import Job, Reply, work
from petl_ray.verb import Resources, Verb


class Executor(Protocol):
    """Turns jobs into replies somewhere."""

    def admit(self, verb: Verb) -> Resources:
        """What `verb` is given here; raises CapacityError for what could never start."""

    def answer(self, jobs: Sequence[Job], pulse: Pulse, check: Callable[[], None]) -> list[Reply]:
        """Execute the jobs, as many at a time as fit, and return all their replies; `check` may raise to stop."""

    def prepare(self, verb: Verb) -> Resources:
        """What `verb` is given in the driver, after making ready what it needs there: a Ray to drive, or nothing."""


class InProcess:
    """Every step in this process; steps that run at the same time share the cores of the placement."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._gate = Gate(placement.cores)

    def admit(self, verb: Verb) -> Resources:
        asked = self._placement.resources(verb.name)
        gpus = self._placement.gpus
        there = math.ceil(asked.gpus) * asked.workers * asked.packs if gpus == "auto" else gpus
        check_capacity(verb.name, asked, verb.drives_ray, [{"CPU": self._placement.cores, "GPU": there}])
        return asked

    def answer(self, jobs: Sequence[Job], pulse: Pulse, check: Callable[[], None]) -> list[Reply]:
        replies: list[Reply] = []
        for job in jobs:
            with self._gate.passed(0 if job.verb.drives_ray else job.resources.cpus, check):
                replies += work(job, pulse)
        return replies

    def prepare(self, verb: Verb) -> Resources:
        """Makes nothing ready: verbs that drive Ray start a local one themselves."""
        return self._placement.resources(verb.name)


class Gate:
    """Lets through as much at a time as there are cores."""

    def __init__(self, cores: int) -> None:
        self._free = cores
        self._changed = threading.Condition()

    @contextmanager
    def passed(self, cores: int, check: Callable[[], None]) -> Iterator[None]:
        """Hold `cores` for the block, after waiting for them; `check` may raise meanwhile."""
        with self._changed:
            while self._free < cores:
                check()
                self._changed.wait(timeout=0.5)
            self._free -= cores
        try:
            yield
        finally:
            with self._changed:
                self._free += cores
                self._changed.notify_all()
