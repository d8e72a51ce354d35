"""A gateway whose neighbours die: a model server under load, then broker, flags and database all at once."""

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
from schemas.tasks import RedactionSettings, TaskKind, TaskSpec
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.prediction_log.tables import open_table
from shared.settings import Settings
from tests.conftest import ROOT
from tests.integration.gateway_clients import Place, accepted, ask
from tests.integration.gateway_process import GatewayProcess, OwnBroker, own_broker, until
from tests.integration.gateway_stack import UnleashAdmin
from tests.integration.model_process import ModelProcess, model_processes

pytestmark = pytest.mark.stack

OTHERS = ("postgres", "unleash")


@pytest.fixture(scope="module")
def broker() -> Iterator[OwnBroker]:
    """With a database and a flag server of its own."""
    with own_broker("outages", OTHERS) as one:
        yield one


@pytest.fixture(scope="module")
async def servers() -> AsyncIterator[list[ModelProcess]]:
    async with model_processes(2) as two:
        yield two


@pytest.fixture(scope="module")
async def place(broker: OwnBroker, servers: list[ModelProcess]) -> AsyncIterator[Place]:
    settings = await asyncio.to_thread(broker.start)
    plain = RedactionSettings(enabled=False)
    spec = TaskSpec(name=f"outages-{uuid4().hex[:8]}", kind=TaskKind.GENERATION, system_prompt="Help.", redaction=plain)
    one = Place(broker, settings, ",".join(server.url for server in servers), (spec, spec))
    await one.announce()
    yield one


@dataclass
class Load:
    """Clients that never stop asking. A stream that breaks off after it began is the only failure there may be."""

    url: str
    task: str
    answered: Counter[str] = field(default_factory=Counter)
    broken_off: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def body(self) -> dict[str, object]:
        return {"model": self.task, "messages": [{"role": "user", "content": "hello"}]}

    async def ask(self, http: httpx.AsyncClient) -> None:
        answer = await http.post("/v1/chat/completions", json=self.body)
        if answer.status_code == 200:
            self.answered[answer.json()["choices"][0]["message"]["content"]] += 1
        else:
            self.failures.append(answer.text)

    async def listen(self, http: httpx.AsyncClient) -> None:
        said = ""
        async with http.stream("POST", "/v1/chat/completions", json={**self.body, "stream": True}) as answer:
            if answer.status_code != 200:
                self.failures.append((await answer.aread()).decode())
                return
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    self.answered[said.strip(".")] += 1
                    return
                if not line.startswith("data: "):
                    continue
                event = orjson.loads(line[6:])
                if "error" in event:
                    break
                said += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        if said:
            self.broken_off += 1
        else:
            self.failures.append("a stream ended before it began")

    @asynccontextmanager
    async def going_on(self, clients: int = 12) -> AsyncIterator[None]:
        """As many clients that stream and half as many again that do not."""

        async def client(streams: bool) -> None:
            async with httpx.AsyncClient(base_url=self.url, timeout=30) as http:
                while True:
                    try:
                        await (self.listen(http) if streams else self.ask(http))
                    except httpx.HTTPError as error:
                        self.failures.append(repr(error))

        tasks = [asyncio.create_task(client(number % 2 == 0)) for number in range(clients * 2)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_with_a_replica_killed_under_load_no_request_fails_that_had_not_started_to_stream(
    place: Place, servers: list[ModelProcess]
) -> None:
    dying, other = servers
    async with place.gateway() as gateway:
        load = Load(url(gateway), place.task)
        async with load.going_on():
            for _ in range(3):
                await until(lambda: load.answered[f"from {dying.port}"] > 20)
                dying.kill()
                await until_more(load, other)
                await dying.start()
                load.answered.clear()  # It is asked again once it answers a probe.
            await until(lambda: load.answered[f"from {dying.port}"] > 20)
    assert load.failures == []
    assert load.broken_off > 0  # There were streams that had begun, and their clients were told.


async def until_more(load: Load, server: ModelProcess, count: int = 60) -> None:
    before = load.answered[f"from {server.port}"]
    await until(lambda: load.answered[f"from {server.port}"] > before + count)


def url(gateway: GatewayProcess) -> str:
    return f"http://127.0.0.1:{gateway.port}"


@contextlib.contextmanager
def prediction_log(settings: Settings) -> Iterator[None]:
    """The service that fills the lake, as a process."""
    env = {**os.environ, "RATCHET_HOME": str(settings.home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "services.prediction_log.main"]
    with (settings.home / "prediction_log.log").open("ab") as log:
        process = subprocess.Popen(argv, env=env, cwd=settings.home, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def in_the_lake(settings: Settings, task: str) -> Counter[str]:
    """How often each prediction of the task lies there."""
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


@pytest.mark.apache_kafka("tansu forgets what it was given when it ends, so that nothing can be in the lake after it")
async def test_with_kafka_unleash_and_postgres_away_it_serves_and_starts_and_afterwards_all_is_in_the_lake(
    place: Place,
) -> None:
    settings, ids = place.settings, set[str]()
    admin = UnleashAdmin(settings)
    await admin.create(f"ratchet.{place.task}.primary", {"adapter": "tuned", "previous": None})
    with prediction_log(settings):
        async with place.gateway(RATCHET_UNLEASH=settings.unleash) as gateway:
            await until_primary(gateway, place.task)
            ids |= await accepted(gateway, place.task, 16)
            async with place.broker.away():
                assert not reachable(settings)
                ids |= await accepted(gateway, place.task, 40)
                for number in (signal.SIGTERM, signal.SIGKILL):
                    await gateway.end(number)
                    gateway.start()
                    await gateway.until_ready()
                    assert await variant(gateway, place.task) == "primary"  # From the last known flags, and tasks.
                    ids |= await accepted(gateway, place.task, 40)
            await until(lambda: ids <= set(in_the_lake(settings, place.task)), story=lambda: story(gateway, settings))
            assert set(in_the_lake(settings, place.task).values()) == {1}
            await until(lambda: gateway.waiting() == [])
    await admin.close()


async def until_primary(gateway: GatewayProcess, task: str) -> None:
    async def there() -> bool:
        return await variant(gateway, task) == "primary"

    await until(there)


def reachable(settings: Settings) -> list[str]:
    """Which of the three still answers."""
    found = []
    ports = {settings.kafka, settings.unleash.removeprefix("http://"), settings.postgres.split("@")[1].split("/")[0]}
    for address in ports:
        host, _, port = address.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
            found.append(address)
    return found


def story(gateway: GatewayProcess, settings: Settings) -> str:
    logs = [gateway.home / "gateway.log", settings.home / "prediction_log.log"]
    return "\n".join(path.read_text()[-3000:] for path in logs)


async def test_several_workers_answer_on_one_port_and_one_that_dies_is_replaced_and_loses_nothing(place: Place) -> None:
    async with place.gateway() as alone:
        await alone.end(signal.SIGTERM)
    gateway = GatewayProcess(alone.home, {"RATCHET_VLLM": place.vllm, "RATCHET_GATEWAY_WORKERS": "2"})
    gateway.start()
    try:
        first, second = await until_workers(gateway)
        ids = {await ask_anew(gateway, place.task) for _ in range(24)}
        assert await counted_by(gateway) == {"0", "1"}
        first.kill()
        await asyncio.to_thread(first.wait, 60)  # Until it is gone, the kernel gives it connections too.
        ids |= {await ask_anew(gateway, place.task) for _ in range(8)}
        replaced = await until_workers(gateway, without=first)
        assert second in replaced
        ids |= {await ask_anew(gateway, place.task) for _ in range(24)}
        assert len(await place.arrived(ids)) == 56
        children = psutil.Process(gateway.process.pid).children(recursive=True) if gateway.process else []
        await gateway.end(signal.SIGTERM)
        assert [one for one in children if one.is_running()] == []
        assert gateway.waiting() == []
    finally:
        end_workers(gateway)


async def test_workers_whose_keeper_is_killed_end_too(place: Place) -> None:
    async with place.gateway() as alone:
        await alone.end(signal.SIGTERM)
    gateway = GatewayProcess(alone.home, {"RATCHET_VLLM": place.vllm, "RATCHET_GATEWAY_WORKERS": "2"})
    gateway.start()
    try:
        workers = await until_workers(gateway)
        assert gateway.process is not None
        gateway.process.kill()
        await asyncio.to_thread(gateway.process.wait)
        await until(lambda: not any(one.is_running() for one in workers))
    finally:
        end_workers(gateway)


async def test_what_an_app_may_ask_is_for_all_workers_together_and_outlives_one_of_them(place: Place) -> None:
    async with place.gateway() as alone:
        await alone.end(signal.SIGTERM)
    gateway = GatewayProcess(alone.home, {"RATCHET_VLLM": place.vllm, "RATCHET_GATEWAY_WORKERS": "2"})
    key, digest = new_key()
    limit = ApiKey(app="shop", digest=digest, created_at=datetime.now(UTC), requests_per_second=0.001, burst=20)
    write_keys(gateway.settings.keys_file, [limit])
    gateway.start()
    try:
        first, _ = await until_workers(gateway)
        statuses = Counter([await status_anew(gateway, place.task, key) for _ in range(60)])
        assert statuses == {200: 20, 429: 40}
        assert await counted_by(gateway) == {"0", "1"}
        first.kill()
        await asyncio.to_thread(first.wait, 60)
        await until_workers(gateway, without=first)
        assert {await status_anew(gateway, place.task, key) for _ in range(16)} == {429}
    finally:
        end_workers(gateway)


async def until_workers(gateway: GatewayProcess, without: psutil.Process | None = None) -> list[psutil.Process]:
    """The two workers, by number, once both are ready; not that one."""
    found: list[psutil.Process] = []

    async def ready() -> bool:
        assert gateway.process is not None
        children = psutil.Process(gateway.process.pid).children()
        found[:] = sorted((one for one in children if one != without), key=lambda one: one.cmdline()[3:4])
        return len(found) == 2 and all([await answers(gateway) for _ in range(16)])

    await until(ready, story=lambda: (gateway.home / "gateway.log").read_text()[-3000:])
    return list(found)


async def answers(gateway: GatewayProcess) -> bool:
    """Whether whoever a new connection leads to is ready."""
    with contextlib.suppress(httpx.TransportError):
        async with gateway.http() as http:
            return (await http.get("/readyz")).status_code == 200
    return False


async def ask_anew(gateway: GatewayProcess, task: str) -> str:
    """Over a connection of its own: the kernel gives it to one worker or the other."""
    async with gateway.http() as http:
        answer = await ask(http, task)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-ratchet-prediction-id"]


async def status_anew(gateway: GatewayProcess, task: str, key: str) -> int:
    """Over a connection of its own, with this key."""
    async with gateway.http() as http:
        http.headers["authorization"] = f"Bearer {key}"
        return (await ask(http, task)).status_code


async def counted_by(gateway: GatewayProcess) -> set[str]:
    """The workers that say they answered, whichever of them is asked."""

    async def told() -> set[str]:
        async with gateway.http() as http:
            lines = (await http.get("/metrics")).text.splitlines()
        counts = [line for line in lines if line.startswith("ratchet_gateway_answers_total{")]
        return {line.partition('worker="')[2].partition('"')[0] for line in counts}

    async def both() -> bool:
        return len(await told()) == 2

    await until(both)  # A worker writes what it counts every five seconds.
    return await told()


def end_workers(gateway: GatewayProcess) -> None:
    """Whatever is left of it."""
    assert gateway.process is not None
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(gateway.process.pid).children(recursive=True):
            child.kill()
    gateway.process.kill()
    gateway.process.wait()
