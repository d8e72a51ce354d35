"""A gateway as a process that tests kill, a model server that answers at once, and a broker that tests stop."""

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
from deploy.devstack.ports import take_ports
from schemas.tasks import TaskChanged, TaskSpec
from services.gateway.settings import GatewaySettings
from shared.kafka.broker import build_broker
from shared.kafka.clients import client_options, end_offsets
from shared.kafka.publisher import Publisher
from shared.kafka.topics import create_topics
from shared.privacy.encryption import load_cipher
from shared.settings import Settings
from shared.spool import SpoolReader, list_slots
from tests.conftest import ROOT, TestStack
from tests.waiting import PATIENCE_SECONDS, until


class OwnBroker:
    """A broker that no other test uses, so that it can be stopped, together with other parts of the stack."""

    def __init__(self, home: Path, other_parts: Sequence[str] = ()) -> None:
        self._stack = TestStack(home)
        self._parts = ["kafka", *other_parts]
        self._stack.env.pop("RATCHET_KAFKA", None)
        self.env = self._stack.env
        self.home = home

    def start(self) -> Settings:
        """Start the broker and create all topics."""
        settings = self._stack.start(self._parts)
        create_topics(settings)
        return settings

    def stop(self) -> None:
        """Stop the broker and the other parts, but not the server that a broker keeps its records in."""
        stack.down(self._parts, home=self.home, env=self.env)

    def close(self) -> None:
        """Stop everything that runs in this home."""
        self._stack.stop()

    @asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Stop the broker for the length of a `with`, and start it again even if the test fails inside."""
        await asyncio.to_thread(self.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(self.start)


@contextmanager
def own_broker(name: str, other_parts: Sequence[str] = ()) -> Iterator[OwnBroker]:
    """A broker for a module of tests, in a folder of its own; not started."""
    home = ROOT / ".ratchet" / "tests" / f"{os.getpid()}-{name}"
    home.mkdir(parents=True)
    broker = OwnBroker(home, other_parts)
    try:
        yield broker
    finally:
        broker.close()
        shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def model_server(text: Callable[[], str]) -> AsyncIterator[str]:
    """Run a server that serves every model and answers with `text()`. Yields its address."""

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        choice = {
            "index": 0, "message": {"role": "assistant", "content": text()}, "finish_reason": "stop",
            "logprobs": {"content": [{"token": "t", "logprob": -0.1, "bytes": None, "top_logprobs": []}]},
        }  # fmt: skip
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        completion = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        return web.json_response({**completion, "usage": usage})

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    app = web.Application(client_max_size=64 * 1024**2)
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
    """`python -m services.gateway.main` in `home`. `env` is added to the settings of the home's `stack.env`.

    `slot`: the folder of its spool, known once it is ready.
    """

    home: Path
    env: Mapping[str, str]
    port: int = field(default_factory=lambda: take_ports(1)[0])
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

    async def stop(self, number: signal.Signals) -> None:
        """Send the gateway a signal and wait until it has ended."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        await asyncio.to_thread(self.process.wait, PATIENCE_SECONDS)

    @property
    def settings(self) -> GatewaySettings:
        values = {name.removeprefix("RATCHET_").lower(): value for name, value in self.env.items()}
        return GatewaySettings.load(**{"home": self.home, **values})

    def kill_with_shipper(self) -> None:
        """kill -9 the gateway and its shipper, in whatever state they are."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children() if self.process.poll() is None else []:
            child.kill()
        self.process.kill()
        self.process.wait()

    def shipper_status(self) -> dict[str, Any]:
        """Return the shipper's last report; empty if there is none."""
        with contextlib.suppress(OSError):
            status: dict[str, Any] = json.loads((self.slot or self.home).joinpath("shipper.json").read_text())
            return status
        return {}

    def signal_shipper(self, number: signal.Signals) -> int:
        """Send the shipper a signal; returns its process id."""
        pid = int(self.shipper_status()["pid"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def spooled(self) -> list[bytes]:
        """Return the values of the records in the spool that are not in Kafka yet."""
        cipher = load_cipher(self.settings.secrets_folder, "spool")
        return [
            stored.record.value
            for slot in list_slots(self.settings.spool_folder)
            for stored in SpoolReader(slot, cipher).read(10**6, 10**9)
        ]

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_SECONDS) as client:
            yield client

    async def until_ready(self) -> None:
        """Wait until the gateway is ready and its shipper has reported; from then on `slot` is known."""
        started, self.slot = time.time(), None
        async with self.http() as http:
            await until(lambda: self._ready(http, started), (self.home / "gateway.log").read_text)

    async def _ready(self, http: httpx.AsyncClient, started: float) -> bool:
        try:
            ready = (await http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False
        assert self.process is not None
        if self.slot is None and (shippers := psutil.Process(self.process.pid).children()):
            self.slot = Path(shippers[0].cmdline()[3])
        return ready and self.shipper_status().get("at", 0.0) > started


async def publish_task(settings: Settings, spec: TaskSpec) -> None:
    broker = build_broker(settings, "scheduler")
    await broker.start()
    try:
        change = TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec)
        await Publisher(broker, "scheduler").publish(change)
    finally:
        await broker.stop()


async def read_topic(settings: Settings, topic: str) -> list[tuple[bytes, bytes]]:
    """Return the keys and values of all records that are on the topic now."""
    return [(record.key or b"", record.value) for record in await read_records(settings, topic)]


async def read_records(settings: Settings, topic: str) -> list[Any]:
    """Return all records that are on the topic now, however long the broker takes to send them."""
    consumer = AIOKafkaConsumer(
        topic, **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        ends = await end_offsets(settings, list(consumer.assignment()))
        assert ends, f"no partition of {topic} is known"
        found: list[Any] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                batches = await consumer.getmany(timeout_ms=500)
                found += [record for batch in batches.values() for record in batch]
        return found
    finally:
        await consumer.stop()


def process_exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
