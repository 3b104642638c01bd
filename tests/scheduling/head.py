"""A Ray cluster as somebody else would have started it: its own process, its own token, beyond `ray.init` of ours."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.tinyplan import surroundings

START_S = 90.0


@dataclass(frozen=True)
class Head:
    """The dashboard's address, the file that holds the token, and PETL_RAY_HOME of its jobs."""

    address: str
    token: Path
    home: Path


@contextmanager
def protected_head(folder: Path) -> Iterator[Head]:
    """A head node of two CPUs that asks for a token; ended by its own process group, files and all."""
    token = folder / "token"
    with os.fdopen(os.open(token, os.O_CREAT | os.O_WRONLY, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
    port, dashboard, agent, client = _free_ports(4)
    scratch = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # short: Ray's sockets lie below it
    bin_of_ours = Path(sys.executable).parent
    environment = surroundings(
        PATH=f"{bin_of_ours}{os.pathsep}{os.environ['PATH']}",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        PETL_RAY_HOME=str(folder / "remote-home"),
    )
    words = [str(bin_of_ours / "ray"), "start", "--head", "--block", f"--temp-dir={scratch}", "--num-cpus=2"]
    words += [f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    words += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    words += ["--object-store-memory=200000000", "--disable-usage-stats"]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        _wait_until_up(process, address)
        yield Head(address, token, folder / "remote-home")
    finally:
        with suppress(ProcessLookupError):  # the head and all it started are one process group, this test's own
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
        except urllib.error.HTTPError as error:
            assert error.code == 401, "the head answers without a token"
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError("the head did not come up")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
