"""Drivers as processes: `petl-ray run` started, killed, stopped, and swept away with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
PATIENCE_S = 180.0


def free_port() -> int:
    """A port of the loopback that nobody holds now."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def until(happened: Callable[[], bool]) -> None:
    """Wait for something that must happen; a test that waits for ever fails by this."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@dataclass
class Drivers:
    """The drivers of one test. `address` is the Ray cluster they join where they would start one of their own."""

    logs: Path
    address: str | None = None
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, plan: Path, home: Path, placement: Path, fault: str = "", once: Path | None = None) -> Driver:
        """Start `petl-ray run`; with `fault` it (or a worker it starts) dies there, with `once` only one time."""
        command = [sys.executable, "-m", "petl_ray.cli", "run", str(plan)]
        command += ["--home", str(home), "--cluster", str(placement), "--json"]
        environment = {**os.environ, "PETL_RAY_FAULT": fault, "PETL_RAY_FAULT_ONCE": str(once or "")}
        if self.address is not None:
            environment |= {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}
        log = self.logs / f"driver-{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
            )
        self._started.append(process)
        return Driver(process, log)

    def run(self, plan: Path, home: Path, placement: Path, fault: str = "", once: Path | None = None) -> Driver:
        """Start a driver and wait for its end."""
        driver = self.start(plan, home, placement, fault, once)
        driver.wait()
        return driver

    def sweep(self) -> None:
        """End whatever of the drivers' process groups is left."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass
class Driver:
    """One `petl-ray run`."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> int:
        """Its exit code: 0, or minus the signal that killed it."""
        return self.process.wait(timeout=PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL to the driver alone, not to what it started."""
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.wait() == KILLED, self.said

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened in the home while the driver lives."""

        def lives_and_did() -> bool:
            assert self.process.poll() is None, f"the driver ended before it happened: {self.said}"
            return happened()

        until(lives_and_did)

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.log.read_text(errors="replace")
