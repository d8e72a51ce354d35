"""Clients of gateway processes: they ask, note what was accepted, and look for it in Kafka."""

from __future__ import annotations

import asyncio
import resource
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx

from schemas.predictions import PredictionLogged
from schemas.tasks import RedactionSettings, TaskSpec
from shared.settings import Settings
from tests.integration.gateway_process import (
    PATIENCE_SECONDS,
    GatewayProcess,
    OwnBroker,
    publish_task,
    read_raw,
    until,
)

PREDICTIONS = "predictions.logged.v1"


@dataclass
class Place:
    """A broker of our own, a model server, two tasks: `task` redacts, `raw` does not."""

    broker: OwnBroker
    settings: Settings
    vllm: str
    specs: Sequence[TaskSpec]

    @property
    def task(self) -> str:
        return self.specs[0].name

    @property
    def raw(self) -> str:
        return self.specs[1].name

    async def announce(self, redacting: bool = False) -> None:
        """Tell the broker of the tasks: also one that kept nothing when it was stopped.

        While no task redacts, no shipper loads a language model: a gateway then starts in two seconds, not in ten.
        """
        plain = RedactionSettings(enabled=False)
        for spec in self.specs:
            await publish_task(self.settings, spec if redacting else spec.model_copy(update={"redaction": plain}))

    @asynccontextmanager
    async def gateway(self, home: Path | None = None, **settings: str) -> AsyncIterator[GatewayProcess]:
        """A gateway that runs; with a spool of its own, or with that of a home that is there."""
        if home is None:
            home = self.broker.home / f"gateway-{uuid4().hex[:8]}"
            home.mkdir()
            shutil.copy(self.broker.home / "stack.env", home)
        one = GatewayProcess(home, {"RATCHET_VLLM": self.vllm, **settings})
        one.start()
        try:
            await one.until_ready()
            yield one
        finally:
            one.kill_all()

    async def events(self, topic: str, ids: set[str], seconds: float = PATIENCE_SECONDS) -> list[bytes]:
        """The values of all records with these keys, once each of the keys is there."""
        found: list[tuple[bytes, bytes]] = []

        async def all_there() -> bool:
            found[:] = [(k, v) for k, v in await read_raw(self.settings, topic) if k.decode() in ids]
            return {key.decode() for key, _ in found} == ids

        await until(all_there, seconds, lambda: f"{len(found)} of {len(ids)}")
        return [value for _, value in found]

    async def arrived(self, ids: set[str]) -> list[PredictionLogged]:
        """The predictions with these ids, once all are in Kafka; a record that came twice was one event."""
        events = set(map(PredictionLogged.model_validate_json, await self.events(PREDICTIONS, ids)))
        assert len({event.event_id for event in events}) == len(events) == len(ids)
        return list(events)


async def ask(http: httpx.AsyncClient, task: str, text: str = "hello") -> httpx.Response:
    body = {"model": task, "messages": [{"role": "user", "content": text}], "user": "ann@example.com"}
    return await http.post("/v1/chat/completions", json=body)


async def accepted(gateway: GatewayProcess, task: str, count: int) -> set[str]:
    """Ask so many times, eight at once; the ids of what was answered."""
    async with gateway.http() as http:
        ids: set[str] = set()
        for start in range(0, count, 8):
            for response in await asyncio.gather(*(ask(http, task) for _ in range(min(8, count - start)))):
                assert response.status_code == 200, response.text
                ids.add(response.headers["x-ratchet-prediction-id"])
    assert len(ids) == count
    return ids


@asynccontextmanager
async def load(gateway: GatewayProcess, task: str, ids: set[str]) -> AsyncIterator[None]:
    """Four clients that never stop asking, whether somebody answers or not; `ids` gets what was answered."""

    async def client() -> None:
        async with gateway.http() as http:
            while True:
                try:
                    response = await ask(http, task)
                except httpx.TransportError:
                    pass
                else:
                    if response.status_code == 200:
                        ids.add(response.headers["x-ratchet-prediction-id"])
                await asyncio.sleep(0.02)

    clients = [asyncio.create_task(client()) for _ in range(4)]
    try:
        yield
    finally:
        for one in clients:
            one.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def tear_the_end(folder: Path) -> None:
    """Half a record, as a crash in the middle of a write leaves it."""
    last = max(folder.glob("*/*.segment"))
    data = last.read_bytes()
    last.write_bytes(data + data[:30])


def oldest_seconds(metrics: str) -> float:
    (line,) = [line for line in metrics.splitlines() if line.startswith("ratchet_gateway_spool_oldest_seconds ")]
    return float(line.split()[1])


@dataclass
class Filling:
    """A client that asks until the spool or the disk takes no more."""

    gateway: GatewayProcess
    http: httpx.AsyncClient
    task: str
    kept: set[str] = field(default_factory=set)
    unlogged: set[str] = field(default_factory=set)

    async def ask(self) -> httpx.Response:
        response = await ask(self.http, self.task, "x" * 30_000)
        if response.status_code == 200:
            logged = response.headers.get("x-ratchet-logged") != "false"
            (self.kept if logged else self.unlogged).add(response.headers["x-ratchet-prediction-id"])
        return response

    async def until_full(self) -> httpx.Response:
        """The first answer that is no plain success."""
        for _ in range(60):
            response = await self.ask()
            if response.status_code != 200 or response.headers.get("x-ratchet-logged") == "false":
                return response
        raise AssertionError("it never got full")

    async def until_room(self) -> None:
        async def kept() -> bool:
            before = len(self.kept)
            await self.ask()
            return len(self.kept) > before

        await until(kept)

    async def notes(self) -> str:
        return " ".join((await self.http.get("/readyz")).json()["notes"])

    async def count(self, name: str) -> int:
        lines = (await self.http.get("/metrics")).text.splitlines()
        (line,) = [line for line in lines if line.startswith(f"ratchet_gateway_{name}_total ")]
        return int(float(line.split()[1]))


@asynccontextmanager
async def full_disk(gateway: GatewayProcess) -> AsyncIterator[None]:
    """No file of the gateway may grow beyond 200 KB: it takes a part of a record, then fails, like a full disk."""
    assert gateway.process is not None
    _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        yield
    finally:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
