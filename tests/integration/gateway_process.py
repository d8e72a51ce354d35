"""A gateway as a process of its own, to be killed; a model server that answers at once; a broker to be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from aiohttp import web
from aiokafka import AIOKafkaConsumer

from deploy.devstack import stack
from schemas.tasks import TaskChanged, TaskSpec
from services.gateway.settings import GatewaySettings
from shared.kafka.broker import build_broker
from shared.kafka.clients import client_options, end_offsets
from shared.kafka.publisher import Publisher
from shared.kafka.topics import create_topics
from shared.privacy.encryption import load_cipher
from shared.settings import Settings
from shared.spool import SpoolReader, list_slots
from tests.conftest import ROOT, TestStack, free_ports

PATIENCE_SECONDS = 240.0
"""What a test waits at most. Only a failure takes so long; a shipper, which is nice, may get little of a busy machine:
to load its language model then takes a minute and more."""


class OwnBroker:
    """A broker that nobody else uses, so that it may be stopped; and other parts, for whom it must all be away."""

    def __init__(self, home: Path, others: Sequence[str] = ()) -> None:
        self._stack = TestStack(home)
        self._parts = ["kafka", *others]
        self._stack.env.pop("RATCHET_KAFKA", None)
        self.env = self._stack.env
        self.home = home

    def start(self) -> Settings:
        """Start it, with all topics (one that keeps everything in memory has lost them)."""
        settings = self._stack.start(self._parts)
        create_topics(settings)
        return settings

    def stop(self) -> None:
        stack.down(self._parts, home=self.home, env=self.env)

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Stop it for the length of a `with`, and start it again whatever happens: a test that fails inside must not
        fail the next."""
        await asyncio.to_thread(self.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(self.start)


@contextmanager
def own_broker(name: str, others: Sequence[str] = ()) -> Iterator[OwnBroker]:
    """For a module of tests, in a folder of its own; not started."""
    home = ROOT / ".ratchet" / "tests" / f"{os.getpid()}-{name}"
    home.mkdir(parents=True)
    one = OwnBroker(home, others)
    try:
        yield one
    finally:
        one.stop()
        shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def model_server(text: Callable[[], str]) -> AsyncIterator[str]:
    """Its address. It serves every model and answers with `text()`."""

    async def complete(request: web.Request) -> web.Response:
        asked = await request.json()
        choice = {
            "index": 0, "message": {"role": "assistant", "content": text()}, "finish_reason": "stop",
            "logprobs": {"content": [{"token": "t", "logprob": -0.1, "bytes": None, "top_logprobs": []}]},
        }  # fmt: skip
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        told = {"id": "c", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice]}
        return web.json_response({**told, "usage": usage})

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", models)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class GatewayProcess:
    """`python -m services.gateway.main` on `home`, with these settings beside those of the home's `stack.env`."""

    home: Path
    env: Mapping[str, str]
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None
    slot: Path | None = None

    def start(self) -> None:
        env = {
            **os.environ, "RATCHET_UNLEASH": "http://127.0.0.1:9", **self.env, "RATCHET_HOME": str(self.home),
            "RATCHET_GATEWAY_PORT": str(self.port), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with (self.home / "gateway.log").open("ab") as log:
            argv = [sys.executable, "-m", "services.gateway.main"]
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, cwd=self.home)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.send(number)
        await asyncio.to_thread(self.process.wait, PATIENCE_SECONDS)

    @property
    def settings(self) -> GatewaySettings:
        values = {name.removeprefix("RATCHET_").lower(): value for name, value in self.env.items()}
        return GatewaySettings.load(**{"home": self.home, **values})

    def kill_all(self) -> None:
        """The gateway and its shipper, at once and whatever state they are in."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children() if self.process.poll() is None else []:
            child.kill()
        self.process.kill()
        self.process.wait()

    def status(self) -> dict[str, Any]:
        """What the shipper told last."""
        with contextlib.suppress(OSError):
            told: dict[str, Any] = json.loads((self.slot or self.home).joinpath("shipper.json").read_text())
            return told
        return {}

    def shipper(self, number: signal.Signals) -> int:
        """Send the shipper a signal; returns its process id."""
        pid = int(self.status()["pid"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def waiting(self) -> list[bytes]:
        """The values of what is in the spool and not in Kafka."""
        cipher = load_cipher(self.settings.secrets_folder, "spool")
        return [s.record.value for slot in list_slots(self.settings.spool_folder) for s in
                SpoolReader(slot, cipher).read(10**6, 10**9)]  # fmt: skip

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=30) as client:
            yield client

    async def until_ready(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Until it answers and its shipper has told how it is: from then on its slot is known."""
        started, self.slot = time.time(), None
        async with self.http() as http:
            await until(lambda: self._ready(http, started), seconds, lambda: (self.home / "gateway.log").read_text())

    async def _ready(self, http: httpx.AsyncClient, started: float) -> bool:
        try:
            ready = (await http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False
        assert self.process is not None
        if self.slot is None and (shippers := psutil.Process(self.process.pid).children()):
            self.slot = Path(shippers[0].cmdline()[3])
        return ready and self.status().get("at", 0.0) > started


async def until(
    condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS, story: Callable[[], str] = lambda: ""
) -> None:
    """Wait for a condition, plain or a coroutine; `story` is told if it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if await holds if asyncio.iscoroutine(holds) else holds:
            return
        assert time.monotonic() < deadline, story()
        await asyncio.sleep(0.05)


async def publish_task(settings: Settings, spec: TaskSpec) -> None:
    broker = build_broker(settings, "scheduler")
    await broker.start()
    try:
        change = TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec)
        await Publisher(broker, "scheduler").publish(change)
    finally:
        await broker.stop()


async def read_raw(settings: Settings, topic: str) -> list[tuple[bytes, bytes]]:
    """Key and value of everything that is on the topic now."""
    consumer = AIOKafkaConsumer(
        topic, **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        ends = await end_offsets(settings, list(consumer.assignment()))
        assert ends, f"no partition of {topic} is known"
        found: list[tuple[bytes, bytes]] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                records = await consumer.getmany(timeout_ms=500)
                found += [(one.key or b"", one.value) for batch in records.values() for one in batch]
        return found
    finally:
        await consumer.stop()


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
