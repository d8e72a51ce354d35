"""A gateway during outages: of a model server under load, then of broker, flag server and database at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import orjson
import psutil
import pytest

from schemas.lake import PREDICTIONS as TABLE
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.prediction_log.tables import open_table
from shared.settings import Settings
from tests.conftest import ROOT
from tests.integration.gateway_clients import GatewayBackends, ask, send_requests
from tests.integration.gateway_process import GatewayProcess, OwnBroker, own_broker
from tests.integration.gateway_stack import UnleashAdmin
from tests.integration.model_process import ModelProcess, model_processes
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def broker() -> Iterator[OwnBroker]:
    """A broker with a database and a flag server of its own."""
    with own_broker("outages", ("postgres", "unleash")) as broker:
        yield broker


@pytest.fixture(scope="module")
async def servers() -> AsyncIterator[list[ModelProcess]]:
    async with model_processes(2) as servers:
        yield servers


@pytest.fixture(scope="module")
async def backends(broker: OwnBroker, servers: list[ModelProcess]) -> AsyncIterator[GatewayBackends]:
    settings = await asyncio.to_thread(broker.start)
    plain = RedactionSettings(enabled=False)
    spec = TaskSpec(name=f"outages-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Help.", redaction=plain)
    backends = GatewayBackends(broker, settings, ",".join(server.url for server in servers), (spec, spec))
    await backends.publish_tasks()
    yield backends


@dataclass
class Load:
    """Clients that send requests without end. The only permitted failure is a stream that breaks after its start."""

    url: str
    task: str
    answered: Counter[str] = field(default_factory=Counter)
    broken_streams: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def body(self) -> dict[str, object]:
        return {"model": self.task, "messages": [{"role": "user", "content": "hello"}]}

    async def ask(self, http: httpx.AsyncClient) -> None:
        response = await http.post("/v1/chat/completions", json=self.body)
        if response.status_code == 200:
            self.answered[response.json()["choices"][0]["message"]["content"]] += 1
        else:
            self.failures.append(response.text)

    async def stream(self, http: httpx.AsyncClient) -> None:
        text = ""
        async with http.stream("POST", "/v1/chat/completions", json={**self.body, "stream": True}) as response:
            if response.status_code != 200:
                self.failures.append((await response.aread()).decode())
                return
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    self.answered[text.strip(".")] += 1
                    return
                if not line.startswith("data: "):
                    continue
                event = orjson.loads(line[6:])
                if "error" in event:
                    break
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        if text:
            self.broken_streams += 1
        else:
            self.failures.append("a stream ended before it began")

    @asynccontextmanager
    async def running(self, clients: int = 12) -> AsyncIterator[None]:
        """Run this many clients that stream, and as many that do not."""

        async def client(streams: bool) -> None:
            async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_SECONDS) as http:
                while True:
                    try:
                        await (self.stream(http) if streams else self.ask(http))
                    except httpx.HTTPError as error:
                        self.failures.append(repr(error))

        tasks = [asyncio.create_task(client(number % 2 == 0)) for number in range(clients * 2)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_when_a_replica_is_killed_under_load_only_streams_that_had_begun_break(
    backends: GatewayBackends, servers: list[ModelProcess]
) -> None:
    killed, other = servers
    async with backends.gateway() as gateway:
        load = Load(url(gateway), backends.task)
        async with load.running():
            for number in range(9):
                if number >= 3 and load.broken_streams:  # A kill may hit a moment without a stream that has begun.
                    break
                await until(lambda: load.answered[f"from {killed.port}"] > 20)
                killed.kill()
                await wait_for_more(load, other)
                await killed.start()
                load.answered.clear()  # It gets requests again once it answers a probe.
            await until(lambda: load.answered[f"from {killed.port}"] > 20)
    assert load.failures == []
    assert load.broken_streams > 0  # Some streams had begun, and their clients got an error event.


async def wait_for_more(load: Load, server: ModelProcess, count: int = 60) -> None:
    before = load.answered[f"from {server.port}"]
    await until(lambda: load.answered[f"from {server.port}"] > before + count)


def url(gateway: GatewayProcess) -> str:
    return f"http://127.0.0.1:{gateway.port}"


@contextlib.contextmanager
def prediction_log(settings: Settings) -> Iterator[None]:
    """Run the service that fills the lake, as a process."""
    env = {**os.environ, "RATCHET_HOME": str(settings.home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "services.prediction_log.main"]
    with (settings.home / "prediction_log.log").open("ab") as log:
        process = subprocess.Popen(argv, env=env, cwd=settings.home, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def lake_counts(settings: Settings, task: str) -> Counter[str]:
    """Return how often each prediction of the task is in the lake."""
    table = open_table(settings.lake_uri, TABLE)
    if table is None:
        return Counter()
    rows = table.to_pyarrow_table(columns=["prediction_id", "task"]).to_pylist()
    return Counter(row["prediction_id"] for row in rows if row["task"] == task)


async def variant(gateway: GatewayProcess, task: str) -> str:
    async with gateway.http() as http:
        answer = await ask(http, task)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-ratchet-variant"]


async def test_without_kafka_unleash_and_postgres_the_gateway_serves_restarts_and_loses_nothing(
    backends: GatewayBackends,
) -> None:
    settings, ids = backends.settings, set[str]()
    admin = UnleashAdmin(settings)
    await admin.create(f"ratchet.{backends.task}.primary", {"adapter": "tuned", "previous": None})
    with prediction_log(settings):
        async with backends.gateway(RATCHET_UNLEASH=settings.unleash) as gateway:
            await wait_for_primary(gateway, backends.task)
            ids |= await send_requests(gateway, backends.task, 16)
            async with backends.broker.stopped():
                assert not reachable_addresses(settings)
                ids |= await send_requests(gateway, backends.task, 40)
                for number in (signal.SIGTERM, signal.SIGKILL):
                    await gateway.stop(number)
                    gateway.start()
                    await gateway.until_ready()
                    assert await variant(gateway, backends.task) == "primary"  # From its copies of flags and tasks.
                    ids |= await send_requests(gateway, backends.task, 40)
            await until(
                lambda: ids <= set(lake_counts(settings, backends.task)), explain=lambda: end_of_logs(gateway, settings)
            )
            assert set(lake_counts(settings, backends.task).values()) == {1}
            await until(lambda: gateway.spooled() == [])
    await admin.close()


async def wait_for_primary(gateway: GatewayProcess, task: str) -> None:
    async def is_primary() -> bool:
        return await variant(gateway, task) == "primary"

    await until(is_primary)


def reachable_addresses(settings: Settings) -> list[str]:
    """Return the addresses of broker, flag server and database that accept connections."""
    found = []
    ports = {settings.kafka, settings.unleash.removeprefix("http://"), settings.postgres.split("@")[1].split("/")[0]}
    for address in ports:
        host, _, port = address.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
            found.append(address)
    return found


def end_of_logs(gateway: GatewayProcess, settings: Settings) -> str:
    logs = [gateway.home / "gateway.log", settings.home / "prediction_log.log"]
    return "\n".join(path.read_text()[-3000:] for path in logs)


async def test_workers_share_a_port_and_a_dead_one_is_replaced_without_losing_predictions(
    backends: GatewayBackends,
) -> None:
    async with backends.gateway() as gateway:
        await gateway.stop(signal.SIGTERM)
    gateway = GatewayProcess(gateway.home, {"RATCHET_VLLM": backends.vllm, "RATCHET_GATEWAY_WORKERS": "2"})
    gateway.start()
    try:
        first, second = await wait_for_workers(gateway)
        ids = {await ask_on_new_connection(gateway, backends.task) for _ in range(24)}
        assert await workers_with_answers(gateway) == {"0", "1"}
        first.kill()
        await asyncio.to_thread(
            first.wait, PATIENCE_SECONDS
        )  # Until it has ended, the kernel still gives it connections.
        ids |= {await ask_on_new_connection(gateway, backends.task) for _ in range(8)}
        replaced = await wait_for_workers(gateway, without=first)
        assert second in replaced
        ids |= {await ask_on_new_connection(gateway, backends.task) for _ in range(24)}
        assert len(await backends.wait_for_predictions(ids)) == 56
        children = psutil.Process(gateway.process.pid).children(recursive=True) if gateway.process else []
        await gateway.stop(signal.SIGTERM)
        assert [child for child in children if child.is_running()] == []
        assert gateway.spooled() == []
    finally:
        kill_workers(gateway)


async def test_workers_end_when_their_supervisor_is_killed(backends: GatewayBackends) -> None:
    async with backends.gateway() as gateway:
        await gateway.stop(signal.SIGTERM)
    gateway = GatewayProcess(gateway.home, {"RATCHET_VLLM": backends.vllm, "RATCHET_GATEWAY_WORKERS": "2"})
    gateway.start()
    try:
        workers = await wait_for_workers(gateway)
        assert gateway.process is not None
        gateway.process.kill()
        await asyncio.to_thread(gateway.process.wait)
        await until(lambda: not any(worker.is_running() for worker in workers))
    finally:
        kill_workers(gateway)


async def test_an_apps_rate_limit_is_shared_by_all_workers_and_survives_the_death_of_one(
    backends: GatewayBackends,
) -> None:
    async with backends.gateway() as gateway:
        await gateway.stop(signal.SIGTERM)
    env = {"RATCHET_VLLM": backends.vllm, "RATCHET_GATEWAY_WORKERS": "2", "RATCHET_GATEWAY_PUBLIC_METRICS": "true"}
    gateway = GatewayProcess(gateway.home, env)
    key, digest = new_key()
    limit = ApiKey(app="shop", digest=digest, created_at=datetime.now(UTC), requests_per_second=0.001, burst=20)
    write_keys(gateway.settings.keys_file, [limit])
    gateway.start()
    try:
        first, _ = await wait_for_workers(gateway)
        statuses = Counter([await status_on_new_connection(gateway, backends.task, key) for _ in range(60)])
        assert statuses == {200: 20, 429: 40}
        assert await workers_with_answers(gateway) == {"0", "1"}
        first.kill()
        await asyncio.to_thread(first.wait, PATIENCE_SECONDS)
        await wait_for_workers(gateway, without=first)
        assert {await status_on_new_connection(gateway, backends.task, key) for _ in range(16)} == {429}
    finally:
        kill_workers(gateway)


async def wait_for_workers(gateway: GatewayProcess, without: psutil.Process | None = None) -> list[psutil.Process]:
    """Wait until two workers other than `without` are ready, and return them in the order of their numbers."""
    found: list[psutil.Process] = []

    async def ready() -> bool:
        assert gateway.process is not None
        children = psutil.Process(gateway.process.pid).children()
        found[:] = sorted((child for child in children if child != without), key=lambda child: child.cmdline()[3:4])
        return len(found) == 2 and all([await is_ready(gateway) for _ in range(16)])

    await until(ready, explain=lambda: (gateway.home / "gateway.log").read_text()[-3000:])
    return list(found)


async def is_ready(gateway: GatewayProcess) -> bool:
    """Return True if the worker that gets a new connection is ready."""
    with contextlib.suppress(httpx.TransportError):
        async with gateway.http() as http:
            return (await http.get("/readyz")).status_code == 200
    return False


async def ask_on_new_connection(gateway: GatewayProcess, task: str) -> str:
    """Send a request on a new connection, which the kernel gives to one of the workers. Returns the prediction id."""
    async with gateway.http() as http:
        answer = await ask(http, task)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-ratchet-prediction-id"]


async def status_on_new_connection(gateway: GatewayProcess, task: str, key: str) -> int:
    """Send a request with this key on a new connection and return its status."""
    async with gateway.http() as http:
        http.headers["authorization"] = f"Bearer {key}"
        return (await ask(http, task)).status_code


async def workers_with_answers(gateway: GatewayProcess) -> set[str]:
    """Wait until the metrics show answers of two workers, and return the workers' numbers."""

    async def counted_workers() -> set[str]:
        async with gateway.http() as http:
            lines = (await http.get("/metrics")).text.splitlines()
        counts = [line for line in lines if line.startswith("ratchet_gateway_answers_total{")]
        return {line.partition('worker="')[2].partition('"')[0] for line in counts}

    async def are_both_counted() -> bool:
        return len(await counted_workers()) == 2

    await until(are_both_counted)  # A worker writes its counts every five seconds.
    return await counted_workers()


def kill_workers(gateway: GatewayProcess) -> None:
    """kill -9 the gateway and all its processes."""
    assert gateway.process is not None
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(gateway.process.pid).children(recursive=True):
            child.kill()
    gateway.process.kill()
    gateway.process.wait()
