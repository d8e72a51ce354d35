"""A service: starting before its broker, sharing a port, and its background work."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from polars.exceptions import PanicException

import shared.service
from deploy.devstack.ports import take_ports
from shared.errors import ConfigurationError, DependencyUnavailable, MustStop
from shared.kafka import clients
from shared.service import HttpServer, Service, run, run_alone, running
from shared.settings import Settings
from shared.tasks import end_tasks
from tests.waiting import PATIENCE_SECONDS, until

UNAVAILABLE = DependencyUnavailable("no broker answers")


class FakeBroker:
    """A broker that fails to start until `available` is set."""

    def __init__(self, error: Exception = UNAVAILABLE) -> None:
        self.available = False
        self.attempts = 0
        self.started = False
        self._error = error

    async def start(self) -> None:
        self.attempts += 1
        if not self.available:
            raise self._error
        self.started = True

    async def stop(self) -> None:
        self.started = False


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


async def get(port: int) -> str:
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        for _ in range(100):
            try:
                return (await http.get(f"http://127.0.0.1:{port}/")).text
            except httpx.TransportError:
                await asyncio.sleep(0.02)
    raise AssertionError("no answer")


@pytest.mark.parametrize("error", [UNAVAILABLE, OSError("gone"), ConfigurationError("the password is wrong")])
async def test_a_service_that_serves_before_its_broker_connects_when_the_broker_is_there(error: Exception) -> None:
    broker, port = FakeBroker(error), take_ports(1)[0]
    started: list[str] = []

    async def background() -> None:
        started.append("background")

    async def connected() -> None:
        started.append("connected")

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
        await until(lambda: broker.attempts >= 2)
        assert started == ["background"]
        broker.available = True
        await until(lambda: started == ["background", "connected"])
        assert broker.started
    assert not broker.started


async def test_any_other_service_waits_for_its_broker_and_finally_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.service, "_START_SECONDS", 0.3)
    broker = FakeBroker()
    with pytest.raises(DependencyUnavailable):
        async with running([Service("s", broker)]):  # type: ignore[arg-type]
            raise AssertionError("it started")
    assert broker.attempts >= 2


async def test_services_that_wait_for_a_dependency_stop_at_once_when_they_are_told_to() -> None:
    broker, closed = FakeBroker(), list[str]()

    async def close() -> None:
        closed.append("s")

    running_services = asyncio.create_task(run([Service("s", broker, close=[close])]))  # type: ignore[arg-type]
    await until(lambda: broker.attempts)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await running_services
    assert closed == ["s"]


async def test_services_that_share_a_port_all_answer_until_the_last_one_stops() -> None:
    port = take_ports(1)[0]
    first, second = (Service("s", None, http=HttpServer(hello, "127.0.0.1", port, share_port=True)) for _ in range(2))
    async with running([first]):
        async with running([second]):
            assert await get(port) == "hello"
        for _ in range(10):
            assert await get(port) == "hello"


@pytest.mark.parametrize("share_port", [False, True])
async def test_a_port_in_use_ends_all_services_gracefully_and_names_the_setting(share_port: bool) -> None:
    """uvicorn exits in a task, which tore the event loop down under whatever still worked."""
    closed: list[str] = []

    async def close() -> None:
        closed.append("log")

    async def wait_for_the_stop() -> None:
        await asyncio.Event().wait()

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        services = [
            Service("console", None, http=HttpServer(hello, "127.0.0.1", port, share_port)),
            Service("log", None, prepare=[wait_for_the_stop], close=[close]),
        ]
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(ConfigurationError, match=f"console.*127.0.0.1:{port}.*already in use") as raised:
                await shared.service.run(services)
    assert "RATCHET_CONSOLE_PORT" in raised.value.way_out
    assert closed == ["log"]


async def test_an_application_that_fails_at_its_start_ends_the_service(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no pages"})

    port = take_ports(1)[0]
    with pytest.raises(ConfigurationError, match=f"the application at port {port} failed at its start"):
        await shared.service.run([Service("console", None, http=HttpServer(fails, "127.0.0.1", port))])
    assert "no pages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "traced"),
    [(DependencyUnavailable("Kafka is away"), False), (KeyError("x"), True), (PanicException("out of bounds"), True)],
)
async def test_background_work_is_retried_and_only_a_bug_leaves_a_stack_trace(
    error: BaseException, traced: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    failures: Iterator[BaseException] = iter([error] * 7)

    async def work() -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with caplog.at_level(logging.WARNING):
        await shared.service._run_forever("log", work)
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [bool(record.exc_info) for record in caplog.records] == [traced] * 7
    assert str(error) in caplog.text


async def test_a_service_stops_without_kafka_clients_that_do_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class StuckBroker(FakeBroker):
        async def stop(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(clients, "_STOP_SECONDS", 0.1)
    broker, closed = StuckBroker(), asyncio.Event()
    broker.available = True

    async def close() -> None:
        closed.set()

    async with asyncio.timeout(PATIENCE_SECONDS), running([Service("log", broker, close=[close])]):  # type: ignore[arg-type]
        pass
    assert closed.is_set()
    assert "log: its Kafka clients did not stop" in caplog.text


async def test_a_service_stops_background_work_that_lost_its_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a database goes away as its query is cancelled: the work takes the failure for one to retry."""
    monkeypatch.setattr(shared.service, "end_tasks", partial(end_tasks, again_seconds=0.05))
    began, cancelled = asyncio.Event(), 0

    async def work() -> None:
        nonlocal cancelled
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            if cancelled == 1:
                raise DependencyUnavailable("PostgreSQL does not answer") from None
            raise

    async with asyncio.timeout(PATIENCE_SECONDS), running([Service("log", None, background=[work])]):
        await began.wait()
    assert cancelled >= 1


async def test_a_reader_goes_on_without_a_consumer_that_does_not_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class StuckConsumer:
        def __init__(self, *topics: str, **options: Any) -> None: ...

        async def start(self) -> None: ...

        async def stop(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(clients, "_STOP_SECONDS", 0.1)
    monkeypatch.setattr(clients, "AIOKafkaConsumer", StuckConsumer)
    async with asyncio.timeout(PATIENCE_SECONDS), clients.open_consumer(Settings(), group_id="ratchet.letters.log"):
        pass
    assert "ratchet.letters.log: its Kafka clients did not stop" in caplog.text


async def test_no_server_is_seen_half_made_by_one_that_starts_beside_it() -> None:
    """NiceGUI asks all servers of its process for `loaded_app` as it starts: the console ended, and all with it."""
    first, second = take_ports(2)
    services: list[Service] = []
    loaded: list[bool] = []

    async def looks_at_all(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            for _ in range(50):
                loaded.extend(server.config.loaded for service in services for server in service.servers)
                await asyncio.sleep(0)
            await send({"type": "lifespan.startup.complete"})

    async def takes_a_while() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    services += [
        Service("console", None, http=HttpServer(looks_at_all, "127.0.0.1", first)),
        Service("scheduler", None, prepare=[takes_a_while], http=HttpServer(hello, "127.0.0.1", second)),
    ]
    async with running(services):
        await get(second)
    assert all(loaded) and len(loaded) > 50


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ConfigurationError("RATCHET_X: too small", "Make it larger."), "RATCHET_X: too small\nMake it larger."),
        (MustStop("the topic was made anew"), "the topic was made anew"),
        (PermissionError(13, "Permission denied", "/var/lib/ratchet"), "/var/lib/ratchet"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_operator_has_to_mend_ends_the_process_with_a_message(raised: Exception, told: str) -> None:
    def build() -> Service:
        raise raised

    with pytest.raises(SystemExit) as ended:
        run_alone(build)
    assert told in str(ended.value.code)


def test_an_error_of_the_code_keeps_its_traceback() -> None:
    def build() -> Service:
        raise ConnectionError("not about a file")

    with pytest.raises(ConnectionError):
        run_alone(build)
