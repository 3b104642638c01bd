"""Dynamic batching: rows of many requests and many adapters become one forward pass; the queue is bounded.

An idle batcher waits a moment for company; a busy one takes what gathered meanwhile. Knows neither models nor adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from petl_ray.errors import TemporaryError

Row = TypeVar("Row")
Result = TypeVar("Result")


class QueueFull(TemporaryError):
    """Too many rows are waiting already; `delay_s` says when to come back."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one batch (rows, padded tokens), of the queue (rows), and the wait for company in seconds."""

    rows: int
    tokens: int
    waiting: int
    window_s: float


class Batcher(Generic[Row, Result]):
    """Hands rows to `forward` in batches, one batch at a time, on the one thread of `device`.

    `forward(rows)` returns one result a row, in order; `length(row)` is its tokens. Use from one event loop.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Row]], Sequence[Result]],
        length: Callable[[Row], int],
        device: Executor,
        limits: Limits,
    ) -> None:
        self._forward, self._length, self._device, self._limits = forward, length, device, limits
        self._waiting: deque[tuple[Row, asyncio.Future[Result]]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._rows_per_s = 0.0
        self.batches = 0
        self.rows = 0

    async def submit(self, rows: Sequence[Row]) -> list[Result]:
        """The results of `rows`, in order. Raises QueueFull when too many wait."""
        if len(self._waiting) + len(rows) > self._limits.waiting:
            delay_s = math.ceil(len(self._waiting) / self._rows_per_s) if self._rows_per_s else 1
            raise QueueFull(
                "queue",
                f"{len(self._waiting)} of {self._limits.waiting} rows are waiting",
                "more would only wait longer",
                "Come back after the time that Retry-After names",
                delay_s=float(min(60, max(1, delay_s))),
            )
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in rows]
        self._waiting.extend(zip(rows, futures, strict=True))
        self._arrived.set()
        return list(await asyncio.gather(*futures))

    async def close(self) -> None:
        """Answer what waits, then stop."""
        while self._waiting or self._busy:
            await asyncio.sleep(0.005)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                await self._company()
            if batch := self._take():
                self._busy = True
                await self._answer(batch)
                self._busy = False

    async def _company(self) -> None:
        """Wait for more rows until the window closes or a batch is full."""
        until = time.monotonic() + self._limits.window_s
        while len(self._waiting) < self._limits.rows and (left_s := until - time.monotonic()) > 0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left_s)

    def _take(self) -> list[tuple[Row, asyncio.Future[Result]]]:
        """The next batch, first come first served, within rows and padded tokens; rows nobody waits for are dropped."""
        batch: list[tuple[Row, asyncio.Future[Result]]] = []
        longest = 0
        while self._waiting and len(batch) < self._limits.rows:
            row, future = self._waiting[0]
            if not future.done():
                longest = max(longest, self._length(row))
                if batch and longest * (len(batch) + 1) > self._limits.tokens:
                    break
                batch.append((row, future))
            self._waiting.popleft()
        return batch

    async def _answer(self, batch: list[tuple[Row, asyncio.Future[Result]]]) -> None:
        """Run one batch; if it fails, run its rows one by one, so that only the guilty one fails."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._device, self._forward, [row for row, _ in batch])
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to the requests, not to this loop
            if len(batch) > 1:
                for pair in batch:
                    await self._answer([pair])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
        self.batches += 1
        self.rows += len(batch)
        speed = len(batch) / max(1e-6, time.monotonic() - started)
        self._rows_per_s = speed if not self._rows_per_s else 0.8 * self._rows_per_s + 0.2 * speed
