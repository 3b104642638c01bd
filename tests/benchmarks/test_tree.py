"""Processor time and memory of a process and all that it starts."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.tree import Watch

BURN = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
BALLAST = "import time; held = bytearray(64 << 20); time.sleep(30)"


def nested(code: str) -> list[str]:
    """A process that starts another one and waits for it."""
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    return [sys.executable, "-c", outer]


def test_a_grandchild_counts_after_it_has_ended() -> None:
    process = subprocess.Popen(nested(BURN))
    with Watch(process.pid, every_s=0.02) as watch:
        process.wait()
    assert watch.cpu_s > 0.4
    assert watch.pss_mb == []


def test_memory_is_that_of_the_whole_tree_and_what_is_left_is_ended() -> None:
    process = subprocess.Popen(nested(BALLAST))
    with Watch(process.pid, memory=True, every_s=0.1) as watch:
        until = time.monotonic() + 30
        while max(watch.pss_mb) < 64 and time.monotonic() < until:
            time.sleep(0.1)
    assert max(watch.pss_mb) > 64
    watch.end(patience_s=0.0)
    process.wait(timeout=30)  # its child was ended, so it comes to its own end
