"""A cancellation waits for the end of the thread."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from shared.errors import DependencyUnavailable
from shared.service import Service, running
from shared.threads import in_thread
from tests.waiting import PATIENCE_SECONDS


class Work:
    """Work that runs in a thread until `end` is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.started, self.end, self.ended = threading.Event(), threading.Event(), False
        self._error = error

    def __call__(self) -> None:
        self.started.set()
        assert self.end.wait(PATIENCE_SECONDS)
        self.ended = True
        if self._error:
            raise self._error

    async def cancelled(self) -> asyncio.Task[None]:
        """The task of this work, cancelled while the thread runs."""
        task = asyncio.create_task(in_thread(self))
        await asyncio.to_thread(self.started.wait)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done(), "its thread still runs"
        return task


async def test_it_returns_and_raises_as_the_function_does() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


async def test_a_cancellation_waits_for_the_end_of_the_thread() -> None:
    work = Work()
    task = await work.cancelled()
    work.end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_a_failure_after_the_cancellation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(DependencyUnavailable("the store is away"))
    task = await work.cancelled()
    work.end.set()
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        await task
    assert "the store is away" in caplog.text


async def test_a_stopped_service_has_no_running_thread() -> None:
    work = Work()
    async with running([Service("quiet", None, background=[lambda: in_thread(work)])]):
        await asyncio.to_thread(work.started.wait)
        asyncio.get_running_loop().call_later(0.1, work.end.set)
    assert work.ended
