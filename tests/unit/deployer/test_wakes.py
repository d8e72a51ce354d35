"""A task's worker waits for news, and ends when its service stops."""

from __future__ import annotations

import asyncio

import pytest

from services.deployer.wakes import Wakes


@pytest.mark.parametrize("turns", range(6))
async def test_a_worker_that_is_cancelled_as_news_comes_ends(turns: int) -> None:
    wakes = Wakes()
    worker = asyncio.create_task(wakes.wait("desk", 60.0, 60.0))
    for _ in range(4):
        await asyncio.sleep(0)
    wakes.wake("desk")
    for _ in range(turns):
        await asyncio.sleep(0)
    ended = worker.done()
    worker.cancel()
    await asyncio.wait([worker])
    assert worker.cancelled() is not ended


async def test_a_worker_is_woken_at_once_and_sees_what_was_noted_after_the_shortest_wait() -> None:
    wakes = Wakes()
    wakes.wake("desk")
    await wakes.wait("desk", 60.0, 60.0)
    wakes.note("desk")
    await wakes.wait("desk", 0.01, 60.0)
    await wakes.wait("desk", 0.01, 0.02)
