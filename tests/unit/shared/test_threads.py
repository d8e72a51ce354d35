"""Work in a thread is not left behind by who is cancelled."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from shared.errors import DependencyUnavailable
from shared.service import Service, running
from shared.threads import in_thread


class Work:
    """Waits in a thread until told to end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.end, self.ended = threading.Event(), threading.Event(), False
        self._error = error

    def __call__(self) -> None:
        self.begun.set()
        assert self.end.wait(30.0)
        self.ended = True
        if self._error:
            raise self._error

    async def cancelled(self) -> asyncio.Task[None]:
        """Itself in a task that was cancelled while the thread worked."""
        task = asyncio.create_task(in_thread(self))
        await asyncio.to_thread(self.begun.wait)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done(), "its thread still works"
        return task


async def test_it_returns_and_raises_what_the_function_does() -> None:
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


async def test_a_failure_after_the_cancellation_is_told(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(DependencyUnavailable("the store is away"))
    task = await work.cancelled()
    work.end.set()
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        await task
    assert "the store is away" in caplog.text


async def test_a_service_that_was_stopped_has_no_thread_that_still_works() -> None:
    work = Work()
    async with running([Service("quiet", None, background=[lambda: in_thread(work)])]):
        await asyncio.to_thread(work.begun.wait)
        asyncio.get_running_loop().call_later(0.1, work.end.set)
    assert work.ended
