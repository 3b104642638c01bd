"""Rows of many requests share forward passes; the queue is bounded; one bad row harms nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from petl_ray.serving.batcher import Batcher, Limits, QueueFull

LIMITS = Limits(rows=4, tokens=100, waiting=8, window_s=0.2)


class Recorder:
    """Doubles numbers, remembers its batches; blocks on `gate` where there is one and refuses 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, rows: Sequence[int]) -> list[int]:
        self.gate.wait(10)
        self.batches.append(list(rows))
        if 13 in rows:
            raise ValueError("13")
        return [2 * row for row in rows]


def batcher(recorder: Recorder, limits: Limits = LIMITS) -> Batcher[int, int]:
    return Batcher(recorder, lambda row: row, ThreadPoolExecutor(1), limits)


def test_requests_that_come_together_are_answered_in_one_batch_in_their_order() -> None:
    async def scene() -> None:
        recorder = Recorder()
        one = batcher(recorder)
        assert await asyncio.gather(one.submit([1, 2]), one.submit([3]), one.submit([4])) == [[2, 4], [6], [8]]
        assert recorder.batches == [[1, 2, 3, 4]]
        await one.close()

    asyncio.run(scene())


def test_a_batch_keeps_within_rows_and_padded_tokens() -> None:
    async def scene() -> None:
        recorder = Recorder()
        one = batcher(recorder)
        assert await one.submit([1, 1, 1, 1, 1, 30, 60, 7]) == [2, 2, 2, 2, 2, 60, 120, 14]
        assert [1, 1, 1, 1] in recorder.batches
        assert all(max(rows) * len(rows) <= 100 or len(rows) == 1 for rows in recorder.batches)
        await one.close()

    asyncio.run(scene())


def test_a_full_queue_says_when_to_come_back() -> None:
    async def scene() -> None:
        recorder = Recorder()
        recorder.gate.clear()
        one = batcher(recorder)
        first = asyncio.create_task(one.submit([1] * 4))
        await asyncio.sleep(0.3)  # the first batch is under way, the queue is empty again
        second = asyncio.create_task(one.submit([2] * 8))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="8 of 8 rows are waiting") as full:
            await one.submit([3])
        assert full.value.delay_s >= 1
        recorder.gate.set()
        assert (await first, await second) == ([2] * 4, [4] * 8)
        await one.close()

    asyncio.run(scene())


def test_a_row_that_fails_fails_alone() -> None:
    async def scene() -> None:
        one = batcher(Recorder())
        good, bad, also = await asyncio.gather(
            one.submit([1]), one.submit([13]), one.submit([2]), return_exceptions=True
        )
        assert (good, also) == ([2], [4])
        assert isinstance(bad, ValueError)
        await one.close()

    asyncio.run(scene())


def test_rows_of_a_request_that_was_given_up_are_not_computed() -> None:
    async def scene() -> None:
        recorder = Recorder()
        recorder.gate.clear()
        one = batcher(recorder)
        first = asyncio.create_task(one.submit([1] * 4))
        await asyncio.sleep(0.3)
        given_up = asyncio.create_task(one.submit([5, 5]))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        recorder.gate.set()
        await first
        assert await one.submit([6]) == [12]
        assert not any(5 in rows for rows in recorder.batches)
        await one.close()

    asyncio.run(scene())


def test_closing_answers_what_waits() -> None:
    async def scene() -> None:
        one = batcher(Recorder())
        waiting = asyncio.create_task(one.submit([1, 2, 3, 4, 5, 6]))
        await asyncio.sleep(0)
        await one.close()
        assert await waiting == [2, 4, 6, 8, 10, 12]

    asyncio.run(scene())
