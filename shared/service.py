"""A service as a value, and how one process runs several of them.

`services/<name>/main.py` builds a `Service`; `run` starts its preparation (migrations), broker, background work and
HTTP, and stops them in reverse order on SIGTERM, after the work in progress. A service that `serves_before_broker`
answers at once and connects to the broker whenever that is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from aiokafka.errors import KafkaError
from faststream.kafka import KafkaBroker
from starlette.types import ASGIApp

from shared.errors import ConfigurationError, DependencyUnavailable, MustStop, RatchetError, unusable_file
from shared.kafka.broker import Broker
from shared.kafka.clients import stop_client
from shared.tasks import ENDINGS, end_tasks

logger = logging.getLogger(__name__)
_START_SECONDS = 120.0
_REPEAT_LOG_SECONDS = 60.0

Hook = Callable[[], Awaitable[None]]
Background = Callable[[], Coroutine[None, None, None]]


@dataclass(frozen=True)
class HttpServer:
    """An application and where it listens. `share_port`: other processes listen there too. `options` are uvicorn's."""

    app: ASGIApp
    host: str
    port: int
    share_port: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Service:
    """One service, wired. `background` coroutines run until they are cancelled and are restarted when they fail.

    `broker` is None for a process that only supervises others.
    `serves_before_broker`: preparation, background and HTTP do not wait for the broker, which may be away for hours.
    `connected`: background work that begins when the broker answers. `drain`: called at the stop, while consumers and
    background work still run; `close`: after they have ended.
    """

    name: str
    broker: KafkaBroker | None
    prepare: Sequence[Hook] = ()
    background: Sequence[Background] = ()
    connected: Sequence[Background] = ()
    drain: Sequence[Hook] = ()
    close: Sequence[Hook] = ()
    http: HttpServer | None = None
    serves_before_broker: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    servers: list[uvicorn.Server] = field(default_factory=list, init=False)


def run_alone(build: Callable[[], Service]) -> None:
    """Build a service and run it as this process, until SIGTERM or SIGINT. See `told_errors`."""
    with told_errors():
        asyncio.run(run([build()]))


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """End the process with what is wrong and the way out, not with a traceback, where an operator has to act."""
    try:
        yield
    except (ConfigurationError, MustStop, OSError) as raised:
        error = unusable_file(raised) if isinstance(raised, OSError) else raised
        raise SystemExit("\n".join(filter(None, (error.reason, error.way_out)))) from None


async def run(services: Sequence[Service]) -> None:
    """Run services until SIGTERM or SIGINT, then stop them gracefully.

    Raises MustStop, after stopping them, when one of them reports that continuing would lose or duplicate data.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(services, stop):
        problem = await _first_problem(services, stop)
    if problem is not None:
        raise problem


async def _first_problem(services: Sequence[Service], stop: asyncio.Event) -> MustStop | None:
    """Wait until a service must stop and return its problem, or until `stop` is set and return None."""
    stopped = asyncio.create_task(stop.wait())
    problems = [
        asyncio.create_task(service.broker.halted()) for service in services if isinstance(service.broker, Broker)
    ]
    try:
        await asyncio.wait([stopped, *problems], return_when=asyncio.FIRST_COMPLETED)
        return next((task.result() for task in problems if task.done()), None)
    finally:
        for task in (stopped, *problems):
            task.cancel()


@contextlib.asynccontextmanager
async def running(services: Sequence[Service], stop: asyncio.Event | None = None) -> AsyncIterator[None]:
    """Start the services for the length of a `with`, then stop them. What one of them cannot start for is raised.

    Once `stop` is set, none that has not started yet is waited for.
    """
    starts = [asyncio.create_task(_start(service)) for service in services]
    try:
        if await _have_started(starts, stop or asyncio.Event()):
            logger.info("running: %s", ", ".join(service.name for service in services))
        yield
    finally:
        await end_tasks(starts)
        await asyncio.gather(*(_stop(service) for service in services))


async def _have_started(starts: Iterable[asyncio.Task[None]], stop: asyncio.Event) -> bool:
    """Wait until all have started, and return True, or until `stop` is set. Raises what one cannot start for."""
    stopped, left = asyncio.create_task(stop.wait()), set(starts)
    try:
        while left and not stopped.done():
            await asyncio.wait([stopped, *left], return_when=asyncio.FIRST_COMPLETED)
            for start in [start for start in left if start.done()]:
                start.result()
                left.remove(start)
        return not left
    finally:
        stopped.cancel()


async def _start(service: Service) -> None:
    for hook in service.prepare:
        await _call_with_retries(service.name, hook)
    if service.serves_before_broker:
        _in_background(service, lambda: _connect(service))
    else:
        if service.broker is not None:
            await _call_with_retries(service.name, service.broker.start)
        _in_background(service, *service.connected)
    _in_background(service, *service.background)
    if service.http is not None:
        await _serve(service, service.http)


def _in_background(service: Service, *works: Background) -> None:
    service.tasks.extend(asyncio.create_task(_run_forever(service.name, work)) for work in works)


async def _serve(service: Service, http: HttpServer) -> None:
    """Start to serve. Raises ConfigurationError if the address cannot be listened on, or the application fails.

    These are the steps of uvicorn's own `serve`, which would also take the signals that `run` handles.
    """
    options = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 5, **http.options}
    config = uvicorn.Config(http.app, **options)
    config.load()  # NiceGUI looks at every server of the process as it starts, also at one that has just been made.
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    service.servers.append(server)
    try:
        listening = _listening_socket(http)
    except OSError as error:
        raise ConfigurationError(*unusable_address(service.name, http.host, http.port, error)) from error
    try:
        await server.startup([listening])
    except SystemExit as error:  # An exit would tear down the event loop under all that runs there.
        listening.close()
        reason = f"the application at port {http.port} failed at its start"
        raise ConfigurationError(reason, "What uvicorn logged above says why.") from error
    _in_background(service, server.main_loop)


def unusable_address(name: str, host: str, port: int, error: OSError) -> tuple[str, str]:
    """Return why a service cannot serve at an address, and the way out."""
    setting = f"RATCHET_{name.upper()}"
    way_out = f"Stop what listens there, or set {setting}_HOST and {setting}_PORT to a free address of this machine."
    return f"the {name} cannot serve at {host}:{port}: {error.strerror}", way_out


def _listening_socket(http: HttpServer) -> socket.socket:
    """A socket on the address. If other processes share the port, the kernel distributes connections over them."""
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    with contextlib.ExitStack() as failed:
        # asyncio sets TCP_NODELAY only on a socket that says TCP.
        listening = failed.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if http.share_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((http.host, http.port))
        listening.listen()
        failed.pop_all()
    return listening


async def _connect(service: Service) -> None:
    """Connect to the broker, retrying for as long as it takes, then start the work that needs it."""
    clock = asyncio.get_running_loop().time
    pause, logged, logged_at = 0.2, "", 0.0
    while True:
        try:
            if service.broker is not None:
                await service.broker.start()
            break
        except (RatchetError, KafkaError, OSError) as error:
            if str(error) != logged or clock() - logged_at > _REPEAT_LOG_SECONDS:
                logged, logged_at = str(error), clock()
                logger.warning("%s serves without its broker, retrying: %s", service.name, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)
    if logged:
        logger.info("%s: connected to the broker", service.name)
    _in_background(service, *service.connected)


async def _stop(service: Service) -> None:
    for server in service.servers:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6.0):
                if server.started:
                    await server.shutdown()  # Requests in progress are finished first.
    for hook in service.drain:
        await hook()
    await end_tasks(service.tasks)
    if service.broker is not None:
        await stop_client(service.broker, service.name)
    for hook in service.close:
        await hook()


async def _call_with_retries(name: str, hook: Hook) -> None:
    """Call `hook` until its dependencies are there: services and their dependencies start in any order."""
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    pause = 0.2
    while True:
        try:
            return await hook()
        except (DependencyUnavailable, KafkaError, OSError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise
            logger.warning("%s: cannot start, retrying in %.1f s: %s", name, pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)


async def _run_forever(name: str, work: Background) -> None:
    pause = 1.0
    while True:
        try:
            return await work()
        except DependencyUnavailable as error:  # Expected: a stack trace would look like a bug.
            logger.warning("%s: background work failed, retrying in %.0f s: %s", name, pause, error)
        except ENDINGS:
            raise
        except BaseException:  # A bug must not end the work, nor a panic of Rust, which is no Exception.
            logger.exception("%s: internal error in background work, retrying in %.0f s", name, pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 30.0)
