"""A service as a value, and the one way to run some of them in a process.

`services/<name>/main.py` builds a `Service`; `run` starts it: preparation (migrations), broker, background work,
HTTP; and stops it in reverse on SIGTERM, finishing what it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field

import uvicorn
from aiokafka.errors import KafkaError
from fastapi import FastAPI
from faststream.kafka import KafkaBroker

from shared.errors import DependencyUnavailable, MustStop
from shared.transport import Broker

logger = logging.getLogger(__name__)
_START_SECONDS = 120.0

Hook = Callable[[], Awaitable[None]]
Background = Callable[[], Coroutine[None, None, None]]


@dataclass(frozen=True)
class Service:
    """One service, wired. `background` coroutines run until cancelled and are restarted if they fail."""

    name: str
    broker: KafkaBroker
    prepare: Sequence[Hook] = ()
    background: Sequence[Background] = ()
    close: Sequence[Hook] = ()
    http: FastAPI | None = None
    host: str = "127.0.0.1"
    port: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    servers: list[uvicorn.Server] = field(default_factory=list, init=False)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: `run` has them for the whole process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(services: Sequence[Service]) -> None:
    """Run services until SIGTERM or SIGINT, then stop them gracefully.

    Raises MustStop, after stopping them, when one of them says that going on would lose or double data.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(services):
        problem = await _first_problem(services, stop)
    if problem is not None:
        raise problem


async def _first_problem(services: Sequence[Service], stop: asyncio.Event) -> MustStop | None:
    """Wait for a problem of one of the services, or, for None, until told to stop."""
    told = asyncio.create_task(stop.wait())
    problems = [asyncio.create_task(one.broker.halted()) for one in services if isinstance(one.broker, Broker)]
    try:
        await asyncio.wait([told, *problems], return_when=asyncio.FIRST_COMPLETED)
        return next((task.result() for task in problems if task.done()), None)
    finally:
        for task in (told, *problems):
            task.cancel()


@contextlib.asynccontextmanager
async def running(services: Sequence[Service]) -> AsyncIterator[None]:
    """The services, started, for the length of a `with`."""
    try:
        for outcome in await asyncio.gather(*(_start(service) for service in services), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        logger.info("running: %s", ", ".join(service.name for service in services))
        yield
    finally:
        await asyncio.gather(*(_stop(service) for service in services))


async def _start(service: Service) -> None:
    for hook in service.prepare:
        await _patiently(service.name, hook)
    await _patiently(service.name, service.broker.start)
    for work in service.background:
        service.tasks.append(asyncio.create_task(_forever(service.name, work)))
    if service.http is not None:
        config = uvicorn.Config(
            service.http, host=service.host, port=service.port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        server = _Server(config)
        service.servers.append(server)
        service.tasks.append(asyncio.create_task(server.serve()))


async def _stop(service: Service) -> None:
    for server in service.servers:  # Answers that are on their way are finished first.
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(service.tasks[-1]), 6.0)
    for task in service.tasks:
        task.cancel()
    await asyncio.gather(*service.tasks, return_exceptions=True)
    with contextlib.suppress(KafkaError, OSError):
        await service.broker.stop()
    for hook in service.close:
        await hook()


async def _patiently(name: str, hook: Hook) -> None:
    """Call `hook` until what it needs is there: services and their dependencies start in any order."""
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    pause = 0.2
    while True:
        try:
            return await hook()
        except (DependencyUnavailable, KafkaError, OSError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise
            logger.warning("%s: waiting to start: %s", name, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)


async def _forever(name: str, work: Background) -> None:
    pause = 1.0
    while True:
        try:
            return await work()
        except DependencyUnavailable as error:  # Foreseen: no trace of a stack, which would look like a bug.
            logger.warning("%s: background work waits, again in %.0f s: %s", name, pause, error)
        except Exception:  # The work must go on after a bug; it is logged with its trace.
            logger.exception("%s: background work failed, again in %.0f s", name, pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 30.0)
