"""An idle connection is closed in time, by one timer that outlives its requests. The loop's clock is the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from services.gateway.asgi.protocol import HttpProtocol

KEEP_ALIVE_SECONDS = 75
REQUEST = b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 1\r\n\r\nx"


@dataclass(eq=False)
class Timer:
    at: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass(eq=False)
class Loop:
    """A clock with its timers; tasks are the running loop's."""

    now: float = 1000.0
    timers: list[Timer] = field(default_factory=list)
    started: int = 0

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.started += 1
        self.timers.append(timer := Timer(self.now + seconds, callback))
        return timer

    def create_task(self, coroutine: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(coroutine)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if not timer.cancelled and timer.at <= end]:
            first = min(due, key=lambda timer: timer.at)
            self.timers.remove(first)
            self.now = first.at
            first.callback()
        self.now = end

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for timer in self.timers)


class Transport:
    """A connection of which nothing is read or written."""

    closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}.get(name, default)

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Connection:
    """A client's connection to an application that answers when `answers` is set."""

    def __init__(self) -> None:
        self.loop, self.transport, self.answers = Loop(), Transport(), asyncio.Event()
        self.answers.set()
        self.asked = 0
        config = uvicorn.Config(
            self._app, timeout_keep_alive=KEEP_ALIVE_SECONDS, log_level="critical", interface="asgi3"
        )
        config.load()
        self.protocol = HttpProtocol(config, ServerState(), {}, cast(asyncio.AbstractEventLoop, self.loop))
        self.protocol.connection_made(cast(asyncio.Transport, self.transport))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.answers.wait()
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def send(self, data: bytes = REQUEST) -> None:
        self.protocol.data_received(data)
        await self.rest()

    def closes_in_time(self) -> bool:
        """Let the time pass in which it may idle. Returns True if it stays open until then, and not for longer."""
        self.loop.pass_time(KEEP_ALIVE_SECONDS - 1)
        was_open = not self.transport.closed
        self.loop.pass_time(2)
        return was_open and self.transport.closed

    async def rest(self) -> None:
        """Let the application work."""
        for _ in range(10):
            await asyncio.sleep(0)


async def test_an_idle_connection_is_closed_once_its_time_is_over() -> None:
    connection = Connection()
    await connection.send()
    assert connection.closes_in_time()


async def test_the_time_counts_from_the_last_answer() -> None:
    connection = Connection()
    for between in (10, KEEP_ALIVE_SECONDS - 1, KEEP_ALIVE_SECONDS / 2):
        await connection.send()
        connection.loop.pass_time(between)
    await connection.send()
    assert connection.closes_in_time()


async def test_an_answer_may_take_longer_than_a_connection_may_idle() -> None:
    connection = Connection()
    await connection.send()
    connection.answers.clear()
    await connection.send()
    connection.loop.pass_time(10 * KEEP_ALIVE_SECONDS)
    assert not connection.transport.closed
    connection.answers.set()
    await connection.rest()
    assert connection.closes_in_time()


async def test_a_request_that_has_begun_to_arrive_is_waited_for() -> None:
    connection = Connection()
    await connection.send()
    await connection.send(REQUEST[:20])
    connection.loop.pass_time(2 * KEEP_ALIVE_SECONDS)
    assert not connection.transport.closed


async def test_a_request_that_comes_with_the_end_of_a_body_that_was_not_read_is_no_idleness() -> None:
    connection = Connection()
    await connection.send(REQUEST[:-1])
    assert connection.asked == 1  # And answered, as one without a valid key is.
    connection.answers.clear()
    await connection.send(b"x" + REQUEST)
    assert connection.asked == 2
    connection.loop.pass_time(2 * KEEP_ALIVE_SECONDS)
    assert not connection.transport.closed
    connection.answers.set()
    await connection.rest()
    connection.loop.pass_time(KEEP_ALIVE_SECONDS + 1)
    assert connection.transport.closed


async def test_a_request_that_did_not_wait_for_the_answer_before_it_is_left_to_another_connection() -> None:
    connection = Connection()
    await connection.send(REQUEST * 2)
    assert connection.asked == 1
    assert connection.transport.closed


async def test_a_thousand_answers_take_one_timer_which_ends_with_the_connection() -> None:
    connection = Connection()
    for _ in range(1_000):
        await connection.send()
    assert connection.loop.started == 1
    connection.protocol.connection_lost(None)
    assert connection.loop.pending == 0
