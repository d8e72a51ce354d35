"""A service: what it starts before its broker is there, whom it shares a port with, its background work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import shared.service
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.service import HttpServer, Service, running
from tests.conftest import free_ports

DEAD = DependencyUnavailable("no broker answers")


class FakeBroker:
    """Refuses to start until `there`."""

    def __init__(self, error: Exception = DEAD) -> None:
        self.there = False
        self.tries = 0
        self.started = False
        self._error = error

    async def start(self) -> None:
        self.tries += 1
        if not self.there:
            raise self._error
        self.started = True

    async def stop(self) -> None:
        self.started = False


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def get(port: int) -> str:
    async with httpx.AsyncClient() as http:
        for _ in range(100):
            try:
                return (await http.get(f"http://127.0.0.1:{port}/")).text
            except httpx.TransportError:
                await asyncio.sleep(0.02)
    raise AssertionError("nobody answers")


@pytest.mark.parametrize("error", [DEAD, OSError("gone"), ConfigurationError("the password is wrong")])
async def test_a_service_that_serves_before_its_broker_answers_and_connects_when_it_comes(error: Exception) -> None:
    broker, port = FakeBroker(error), free_ports(1)[0]
    did: list[str] = []

    async def background() -> None:
        did.append("background")

    async def connected() -> None:
        did.append("connected")

    service = Service(
        "s",
        broker,
        http=HttpServer(hello, "127.0.0.1", port),
        background=[background],
        connected=[connected],
        serves_before_broker=True,
    )  # type: ignore[arg-type]
    async with running([service]):
        assert await get(port) == "hello"
        await until(lambda: broker.tries >= 2)
        assert did == ["background"]
        broker.there = True
        await until(lambda: did == ["background", "connected"])
        assert broker.started
    assert not broker.started


async def test_any_other_service_waits_for_its_broker_and_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.service, "_START_SECONDS", 0.3)
    broker = FakeBroker()
    with pytest.raises(DependencyUnavailable):
        async with running([Service("s", broker)]):  # type: ignore[arg-type]
            raise AssertionError("it started")
    assert broker.tries >= 2


async def test_services_that_share_a_port_all_answer_and_one_that_ends_leaves_it_to_the_other() -> None:
    port = free_ports(1)[0]
    one, other = (Service("s", None, http=HttpServer(hello, "127.0.0.1", port, share_port=True)) for _ in range(2))
    async with running([one]):
        async with running([other]):
            assert await get(port) == "hello"
        for _ in range(10):
            assert await get(port) == "hello"


@pytest.mark.parametrize(("error", "traced"), [(DependencyUnavailable("Kafka is away"), False), (KeyError("x"), True)])
async def test_background_work_goes_on_and_only_a_bug_leaves_a_trace(
    error: Exception, traced: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    failures: Iterator[Exception] = iter([error] * 7)

    async def work() -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with caplog.at_level(logging.WARNING):
        await shared.service._run_forever("log", work)
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [bool(record.exc_info) for record in caplog.records] == [traced] * 7
    assert str(error) in caplog.text
