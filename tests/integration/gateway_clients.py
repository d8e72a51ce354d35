"""Clients of gateway processes: they send requests, record what was answered, and look for the events in Kafka."""

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
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskSpec
from services.gateway.domain import unsigned_id
from shared.settings import Settings
from tests.integration.gateway_process import (
    GatewayProcess,
    OwnBroker,
    publish_task,
    read_topic,
)
from tests.waiting import until

PREDICTIONS = "predictions.logged.v1"


@dataclass
class GatewayBackends:
    """What gateways need: a broker of the tests' own, a model server (`vllm`), and two tasks.

    `task` is the one whose texts are redacted; `raw` is never redacted.
    """

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

    async def publish_tasks(self, redacting: bool = False) -> None:
        """Publish the tasks.

        While no task redacts, no shipper loads a language model: a gateway then starts in two seconds instead of ten.
        """
        plain = RedactionSettings(enabled=False)
        for spec in self.specs:
            await publish_task(self.settings, spec if redacting else spec.model_copy(update={"redaction": plain}))

    @asynccontextmanager
    async def gateway(self, home: Path | None = None, **settings: str) -> AsyncIterator[GatewayProcess]:
        """Run a gateway with a spool of its own, or with that of an existing home."""
        if home is None:
            home = self.broker.home / f"gateway-{uuid4().hex[:8]}"
            home.mkdir()
            shutil.copy(self.broker.home / "stack.env", home)
        gateway = GatewayProcess(home, {"RATCHET_VLLM": self.vllm, **settings})
        gateway.start()
        try:
            await gateway.until_ready()
            yield gateway
        finally:
            gateway.kill_with_shipper()

    async def events(self, topic: str, ids: set[str]) -> list[bytes]:
        """Wait until the topic has every prediction in `ids`. Returns the values of all records about these."""
        keys = {unsigned_id(name) for name in ids} if topic == PREDICTIONS else ids
        found: list[tuple[bytes, bytes]] = []

        async def has_all_ids() -> bool:
            records = await read_topic(self.settings, topic)
            found[:] = [(key, value) for key, value in records if key.decode() in keys]
            return {key.decode() for key, _ in found} == keys

        await until(has_all_ids, lambda: f"{len(found)} of {len(ids)}")
        return [value for _, value in found]

    async def logged_requests(self) -> set[str]:
        """The ids of the requests that are in Kafka now: `unsigned_id` of their first prediction."""
        return {key.decode() for key, _ in await read_topic(self.settings, PREDICTIONS)}

    async def wait_for_predictions(self, ids: set[str]) -> list[PredictionLogged]:
        """Wait until all predictions are in Kafka. Copies of a record must be the same event."""
        events = list(map(PredictionLogged.model_validate_json, set(await self.events(PREDICTIONS, ids))))
        assert len({event.event_id for event in events}) == len(events) == len(ids)
        return events


async def ask(http: httpx.AsyncClient, task: str, text: str = "hello") -> httpx.Response:
    body = {"model": task, "messages": [{"role": "user", "content": text}], "user": "ann@example.com"}
    return await http.post("/v1/chat/completions", json=body)


async def send_requests(gateway: GatewayProcess, task: str, count: int) -> set[str]:
    """Send `count` requests, eight at once; all must succeed. Returns the prediction ids."""
    async with gateway.http() as http:
        ids: set[str] = set()
        for start in range(0, count, 8):
            for response in await asyncio.gather(*(ask(http, task) for _ in range(min(8, count - start)))):
                assert response.status_code == 200, response.text
                ids.add(response.headers["x-ratchet-prediction-id"])
    assert len(ids) == count
    return ids


def append_partial_record(folder: Path) -> None:
    """Append a part of a record to the newest segment, as a crash during a write leaves it."""
    segment = max(folder.glob("*/*.segment"))
    data = segment.read_bytes()
    segment.write_bytes(data + data[:30])


@dataclass
class SpoolFiller:
    """A client that sends large requests until the spool or the disk is full.

    `spooled`: the ids of answers that are in the spool; `unlogged`: of answers that are not.
    """

    gateway: GatewayProcess
    http: httpx.AsyncClient
    task: str
    spooled: set[str] = field(default_factory=set)
    unlogged: set[str] = field(default_factory=set)

    async def ask(self) -> httpx.Response:
        response = await ask(self.http, self.task, "x" * 30_000)
        if response.status_code == 200:
            logged = response.headers.get("x-ratchet-logged") != "false"
            (self.spooled if logged else self.unlogged).add(response.headers["x-ratchet-prediction-id"])
        return response

    async def ask_until_full(self) -> httpx.Response:
        """Send requests until an answer is refused or not logged, and return that answer."""
        for _ in range(60):
            response = await self.ask()
            if response.status_code != 200 or response.headers.get("x-ratchet-logged") == "false":
                return response
        raise AssertionError("the spool did not fill up")

    async def ask_until_spooled(self) -> None:
        """Send requests until one is spooled again."""

        async def is_spooled() -> bool:
            before = len(self.spooled)
            await self.ask()
            return len(self.spooled) > before

        await until(is_spooled)

    async def notes(self) -> str:
        return " ".join((await self.http.get("/readyz")).json()["notes"])

    async def count(self, name: str) -> int:
        lines = (await self.http.get("/metrics")).text.splitlines()
        (line,) = [line for line in lines if line.startswith(f"ratchet_gateway_{name}_total ")]
        return int(float(line.split()[1]))


@asynccontextmanager
async def limited_file_size(gateway: GatewayProcess) -> AsyncIterator[None]:
    """Limit the gateway's files to 200 KB: like a full disk, a write stores a part of a record and then fails."""
    assert gateway.process is not None
    _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        yield
    finally:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
