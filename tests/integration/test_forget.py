"""A person is erased on the real broker and database: by the command, in every store, and for good.

The same events are then sent again, now after the request to erase, as in a replay of the topics.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from typer.testing import CliRunner

from deploy.cli.app import app
from deploy.devstack.ports import take_ports
from schemas.adapters import PROBES
from schemas.base import Variant, utc_now
from schemas.catalog import topics_consumed_by
from schemas.conversation import Answer, Call, Message, Role
from schemas.cycles import PartitionFence
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import Confidence, LoggedAnswer, PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from schemas.tasks import TaskSpec
from services.console.main import build as build_console
from services.console.settings import ConsoleSettings
from services.dataset_builder.main import build as build_dataset_builder
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.tables import BUILDS
from services.deployer.main import build as build_deployer
from services.deployer.settings import DeployerSettings
from services.failure_miner.main import build as build_failure_miner
from services.prediction_log.main import build as build_prediction_log
from services.prediction_log.settings import PredictionLogSettings
from services.scheduler.main import build as build_scheduler
from services.scheduler.settings import SchedulerSettings
from services.scheduler.task_files import read_task
from shared.files import write_atomically
from shared.identity import keyed_hash, load_or_create_key
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.privacy import retention
from shared.service import running
from shared.settings import Settings
from shared.storage.database import database_url
from tests.integration.consumer_groups import skip_backlog
from tests.integration.gateway_process import read_records
from tests.integration.test_scheduler import SELDOM
from tests.integration.test_shadow import following
from tests.unit.deployer.fakes import evaluated
from tests.unit.shared.adapter_folders import first_tokens, write_adapter, write_probes
from tests.unit.shared.storage.kept_media import upload
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

STORES = ("failure_miner", "console", "dataset_builder", "deployer")
"""The services with tables in PostgreSQL; those of prediction_log are in the lake."""
RETENTION_DAYS = 30
CORRECTIONS = "corrections.submitted.v1"
REPLAYED = ("predictions.logged.v1", "labels.requested.v1", CORRECTIONS, "shadow.compared.v1")
TABLE = "tasks.changed.v1"
"""Read from its start by each process, outside of any consumer group."""
REFUND = Answer(text="refund")
TASK = """
name: {name}
kind: classification
system_prompt: Which queue?
labels: [delivery, refund]
cron: {cron}
dataset: {{max_age_days: {days}, min_examples: 2, min_examples_per_label: 1, eval_share: 0.4}}
failures: {{overlap_share: 0.0, audit_share: 0.0}}
retention_days: {days}
"""


@dataclass
class Services:
    """All services that store what people wrote, and a task of the test's own."""

    settings: Settings
    spec: TaskSpec
    console: httpx.AsyncClient
    count: Counter[str] = field(default_factory=Counter)

    @property
    def task(self) -> str:
        return self.spec.name

    def hash_of(self, user: str) -> str:
        """Return the user's hash as the gateway makes it."""
        key = load_or_create_key(self.settings.secrets_folder, "subjects")
        return keyed_hash(key, f"{user}@{self.task}")

    async def asked(self, user: str, text: str, at: datetime | None = None) -> PredictionLogged:
        """Publish a prediction of low confidence, made now or at another time."""
        self.count[user] += 1
        name = f"{self.task}.{user}-{self.count[user]}"
        answer = LoggedAnswer(
            prediction_id=name, text="refund", confidence=Confidence(score=0.1, raw=0.2, calibration="c")
        )
        event = PredictionLogged(
            task=self.task, task_revision=self.spec.revision, request_id=name,
            call=Call(messages=(Message(role=Role.USER, content=text),)), answers=(answer,), model="base",
            variant=Variant.BASE, user_hash=self.hash_of(user), latency_ms=1.0, occurred_at=at or utc_now(),
        )  # fmt: skip
        await self.publish("gateway", event)
        return event

    async def publish(self, service: str, *events: Any) -> None:
        broker = build_broker(self.settings, f"test-{service}")
        await broker.start()
        for event in events:
            await Publisher(broker, service).publish(event)
        await broker.stop()

    async def queue(self) -> dict[str, Any]:
        """Return the open questions by their prediction and purpose."""
        answer = await self.console.get("/api/queue", params={"task": self.task, "reviewer": "ann", "limit": 500})
        items = answer.json().get("items", [])
        return {f"{item['prediction_id'].rpartition('.')[2]}:{item['purpose']}": item for item in items}

    async def queue_of(self, count: int) -> dict[str, Any] | None:
        found = await self.queue()
        return found if len(found) == count else None

    async def correct(self, question: dict[str, Any]) -> None:
        label = "delivery" if int(question["prediction_id"].rpartition("-")[2]) <= 6 else "refund"
        body = {"request_id": question["request_id"], "reviewer": "ann", "label": label}
        assert (await self.console.post("/api/corrections", json=body)).status_code == 200

    async def tables_with(self, word: str) -> dict[str, list[str]]:
        """Return the tables of each service that contain the word anywhere in a row."""
        return await asyncio.to_thread(tables_with, self.settings, word)

    async def only_in(self, word: str, services: Collection[str]) -> bool:
        return set(await self.tables_with(word)) == set(services)

    async def lake_has(self, word: str) -> bool:
        """Return True if any file of the lake contains the word, files that no table refers to any more included."""
        return await asyncio.to_thread(lake_has, Path(self.settings.lake_uri), word)

    async def dataset(self, count: int = 1) -> list[str]:
        """Return the texts of the task's dataset versions, reports too, oldest first, once there are `count`.

        A build that failed fails the test, with its reason.
        """

        def read() -> list[str]:
            folder = Path(self.settings.artifacts_uri) / "datasets"
            versions = sorted(folder.glob(f"{self.task}-*"), key=lambda path: path.stat().st_mtime)
            return ["".join(file.read_text() for file in version.iterdir()) for version in versions]

        found = await asyncio.to_thread(read)
        assert not (failed := await asyncio.to_thread(failed_builds, self.settings, self.task)), failed
        return found if len(found) >= count else []

    async def records(self, topic: str) -> list[Any]:
        """Return the task's records of a topic."""
        return [r for r in await read_records(self.settings, topic) if self.task.encode() in (r.value or b"")]

    async def send_again(self) -> None:
        """Send every record of the task once more, unchanged, except the request to erase."""
        producer = AIOKafkaProducer(bootstrap_servers=self.settings.kafka)
        await producer.start()
        for topic in REPLAYED:
            for record in await self.records(topic):
                await producer.send_and_wait(topic, record.value, key=record.key)
        await producer.stop()


def tables_with(settings: Settings, word: str) -> dict[str, list[str]]:
    engine = sa.create_engine(database_url(settings))
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        for service in STORES:
            for table in sa.inspect(connection).get_table_names(schema=service):
                query = sa.text(f'SELECT count(*) FROM "{service}"."{table}" AS r WHERE r::text LIKE :word')
                if connection.scalar(query, {"word": f"%{word}%"}):
                    found.setdefault(service, []).append(table)
    engine.dispose()
    return found


def failed_builds(settings: Settings, task: str) -> list[str]:
    engine = sa.create_engine(database_url(settings))
    query = sa.select(BUILDS.c.event).where(BUILDS.c.task == task, BUILDS.c.topic == "steps.failed.v1")
    with engine.connect().execution_options(schema_translate_map={None: "dataset_builder"}) as connection:
        found = [json.loads(event)["reason"] for event in connection.scalars(query)]
    engine.dispose()
    return found


def lake_has(lake: Path, word: str) -> bool:
    for file in lake.rglob("*.parquet"):
        if "_delta_log" in file.parts:
            continue
        with contextlib.suppress(FileNotFoundError):  # Vacuumed in the meantime.
            if word in str(pq.ParquetFile(file).read().to_pylist()):
                return True
    return False


WORDS = ("where the parcel is", "about a refund", "that the login fails", "about an invoice", "for a new address",
         "of a broken lamp", "to cancel it all", "about the voucher", "from the wrong street",
         "that nobody rings", "for a second copy")  # fmt: skip
ASKED = {"leaves": WORDS[:7], "stays": WORDS}
"""All but the first are corrected: five of each are `delivery`, and one and five are `refund`.

Four and two of those are held out. Whichever they are, each has rows to train on, and who stays has held-out ones."""


async def is_gone(file: Path) -> bool:
    return not await asyncio.to_thread(file.exists)


@asynccontextmanager
async def vllm_that_serves(adapter: str) -> AsyncIterator[str]:
    """Run as much of vLLM as lists an adapter among its models and answers with first tokens."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(line[16:]) for line in head.split("\r\n") if line.startswith("content-length: ")), 0)
        reply: dict[str, Any] = {"data": [{"id": adapter}]}
        if length:
            asked = json.loads(await reader.readexactly(length))
            listed = [{"token": token, "logprob": p} for token, p in first_tokens(asked["model"]).items()]
            logprobs = {"content": [{**listed[0], "top_logprobs": listed}]}
            reply = {"choices": [{"message": {"content": "x"}, "finish_reason": "length", "logprobs": logprobs}]}
        body = json.dumps(reply).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture
async def scene(stack_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Services]:
    task = f"forget-{uuid4().hex[:8]}"
    (tmp_path / "tasks").mkdir()
    file = tmp_path / "tasks" / f"{task}.yaml"
    file.write_text(TASK.format(name=task, days=RETENTION_DAYS, cron=SELDOM))
    folder = tmp_path / "artifacts" / "adapters" / "lora"
    base = TaskSpec.model_fields["base_model"].default
    write_adapter(folder, base)
    write_probes(tmp_path / "artifacts" / PROBES / "lora", "lora", base)
    await skip_backlog(stack_settings, "scheduler", *STORES)
    monkeypatch.setattr(retention, "_ROUND_SECONDS", 0.5)
    async with vllm_that_serves("lora") as engine:
        ports = take_ports(3)
        values = {
            **stack_settings.model_dump(), "artifacts": str(tmp_path / "artifacts"), "vllm": engine,
            "lake": str(tmp_path / "lake"), "prediction_log_maintenance_seconds": 1.0, "prediction_log_grace_hours": 0,
            "scheduler_tasks": tmp_path / "tasks", "console_port": ports[0],
            "scheduler_port": ports[1], "deployer_port": ports[2], "deployer_tick_seconds": 0.3,
        }  # fmt: skip
        monkeypatch.setenv("RATCHET_HOME", str(stack_settings.home))
        monkeypatch.setenv("RATCHET_SCHEDULER_PORT", str(ports[1]))
        monkeypatch.setenv("RATCHET_ARTIFACTS", str(tmp_path / "artifacts"))
        monkeypatch.setenv("RATCHET_LAKE", str(tmp_path / "lake"))
        services = [
            build_scheduler(SchedulerSettings.model_validate(values)),
            build_prediction_log(PredictionLogSettings.model_validate(values)),
            build_failure_miner(Settings.model_validate(values)),
            build_console(ConsoleSettings.model_validate(values)),
            build_dataset_builder(DatasetBuilderSettings.model_validate(values)),
            build_deployer(DeployerSettings.model_validate(values)),
        ]
        patient = httpx.AsyncHTTPTransport(retries=8)  # The ports open a moment after the start.
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}", timeout=PATIENCE_SECONDS, transport=patient)
        async with running(services), client:
            own = {"artifacts": str(tmp_path / "artifacts"), "lake": str(tmp_path / "lake")}
            settings = stack_settings.model_copy(update=own)
            made = Services(settings, read_task(file), client)

            async def listed() -> Any:
                answer = (await client.get(f"http://127.0.0.1:{ports[1]}/api/tasks")).json()["tasks"]
                return task in [item["name"] for item in answer]

            await until(listed)
            yield made


async def candidate_in_shadow(scene: Services) -> RolloutChanged:
    uri = str(Path(scene.settings.artifacts_uri) / "adapters" / "lora")
    its = {"adapter_uri": uri, "occurred_at": utc_now(), "spec": scene.spec, "task_revision": scene.spec.revision}
    verdict = evaluated("lora", scene.task).model_copy(update=its)
    async with following(scene.settings, scene.task, RolloutChanged) as found:
        await scene.publish("evaluator", verdict)

        async def changed() -> Any:  # It is queued first.
            return [change for change in found[RolloutChanged] if change.stage is not Stage.QUEUED]

        change: RolloutChanged = (await until(changed))[0]
    assert change.stage is Stage.SHADOW, change.reason
    return change


def compared(change: RolloutChanged, event: PredictionLogged) -> ShadowCompared:
    return ShadowCompared(
        task=event.task, task_revision=event.task_revision, cycle_id=change.cycle_id,
        pair_id=f"pair-{event.request_id}", rollout_id=change.rollout_id, prediction_id=event.answers[0].prediction_id,
        call=event.call, production_adapter=None, candidate_adapter="lora", production_answer=REFUND,
        candidate_answer=Answer(text="delivery"), agree=False, user_hash=event.user_hash, subject=event.user_hash or "",
        identified=True, logged_at=event.occurred_at, candidate_latency_ms=1.0,
    )  # fmt: skip


def corrected(event: PredictionLogged) -> CorrectionSubmitted:
    """A correction, made now."""
    return CorrectionSubmitted(
        task=event.task, task_revision=event.task_revision, correction_id=f"c-{event.request_id}",
        request_id=f"r-{event.request_id}", prediction_id=event.answers[0].prediction_id,
        purpose=Purpose.LOW_CONFIDENCE, reviewer="ann", call=event.call, answers=(REFUND,), label="delivery",
        user_hash=event.user_hash, predicted_at=event.occurred_at,
    )  # fmt: skip


def train_on_the_version(scene: Services) -> str:
    """Write the manifest of an adapter that was trained on the task's version; returns the adapter's name."""
    artifacts = Path(scene.settings.artifacts_uri)
    (version,) = artifacts.glob(f"datasets/{scene.task}-*")
    name = f"lora-{version.name}"
    manifest = {"adapter": name, "task": scene.task, "dataset_id": version.name}
    write_atomically(artifacts / "adapters" / name / "manifest.json", json.dumps(manifest).encode())
    return name


async def clustered(scene: Services) -> FailuresClustered:
    """The event that has a cycle's dataset built of all corrections so far."""
    return FailuresClustered(
        task=scene.task, task_revision=scene.spec.revision, cycle_id=f"{scene.task}-1", suspects=0, noise=0, modes=(),
        data_cutoff=utc_now(), fence=await fence_of(scene),
    )  # fmt: skip


async def fence_of(scene: Services) -> tuple[PartitionFence, ...]:
    """Return a fence up to the task's corrections so far."""
    ends: dict[int, int] = {}
    for record in await scene.records(CORRECTIONS):
        ends[record.partition] = record.offset + 1
    return tuple(PartitionFence(topic=CORRECTIONS, partition=p, offset=o) for p, o in sorted(ends.items()))


async def caught_up(settings: Settings) -> bool:
    """Return True if the services have handled all records: a consumer group commits what is handled."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, group_id=None)
    await admin.start()
    await consumer.start()
    try:
        for service in (*STORES, "prediction_log"):
            for topic in topics_consumed_by(service):
                if topic.name != TABLE:
                    partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
                    ends = await consumer.end_offsets(partitions)
                    group = f"ratchet.{service}.{topic.name}"
                    done = await admin.list_consumer_group_offsets(group, partitions=partitions)
                    if any(ends[partition] > max(0, done[partition].offset) for partition in partitions):
                        return False
        return True
    finally:
        await consumer.stop()
        await admin.close()


async def test_a_person_is_erased_everywhere_and_stays_erased_after_a_replay(scene: Services) -> None:
    change = await candidate_in_shadow(scene)
    for user, asked in ASKED.items():
        events = [await scene.asked(user, f"{user} wrote {words}") for words in asked]
        await scene.publish("shadow", compared(change, events[-1]))
    questions = await until(lambda: scene.queue_of(sum(map(len, ASKED.values())) + 2))
    for name, question in questions.items():
        if name not in ("leaves-1:low_confidence", "stays-1:low_confidence"):
            await scene.correct(question)
    await until(lambda: scene.only_in("leaves wrote", STORES))
    await until(lambda: scene.lake_has("leaves wrote"))
    await until(lambda: caught_up(scene.settings))
    await scene.publish("failure_miner", await clustered(scene))
    await until(scene.dataset)
    adapter = await asyncio.to_thread(train_on_the_version, scene)

    sent = utc_now()
    hers, his = (upload(scene.settings.artifacts_uri, scene.task, scene.hash_of(w), sent) for w in ("leaves", "stays"))
    arguments = [f"leaves@{scene.task}", "--task", scene.task, "--yes", "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, app, ["forget", *arguments])  # This thread answers it.
    assert result.exit_code == 0, result.output
    assert "leaves" not in result.output
    report = json.loads(result.stdout)
    subject = scene.hash_of("leaves")
    (version,) = report["datasets"]
    assert (report["subjects"], version["people"]) == ([subject], 1)
    assert report["predictions"] == {subject: len(ASKED["leaves"])}
    rows = sum(version["rows"].get(file, 0) for file in ("train.jsonl", "eval.jsonl"))
    assert rows == len(ASKED["leaves"]) - 1
    assert [use["adapter"] for use in report["adapters"]] == [adapter]

    await until(lambda: scene.only_in("leaves wrote", ()))
    await until(lambda: is_gone(hers))
    assert not await is_gone(his)
    assert await is_gone(upload(scene.settings.artifacts_uri, scene.task, subject, sent))  # By a gateway that was away.

    async def vacuumed() -> bool:
        return not await scene.lake_has("leaves wrote")

    await until(vacuumed)
    assert await scene.lake_has("stays wrote")
    assert set(await scene.tables_with("stays wrote")) == set(STORES)
    assert await scene.tables_with(subject) == {service: ["forgotten"] for service in STORES}
    assert set(await scene.queue()) == {"stays-1:low_confidence"}

    await scene.send_again()
    await scene.asked("leaves", "somebody who came back")
    await until(lambda: caught_up(scene.settings))
    assert await scene.tables_with("leaves wrote") == {}
    await until(lambda: scene.lake_has("somebody who came back"))
    await until(vacuumed)
    assert set(await scene.queue()) == {"stays-1:low_confidence", f"leaves-{len(ASKED['leaves']) + 1}:low_confidence"}
    await scene.publish("failure_miner", (await clustered(scene)).model_copy(update={"cycle_id": f"{scene.task}-2"}))
    await until(lambda: scene.dataset(2))
    without = (await scene.dataset(2))[-1]  # One person's few rows are reason enough: the cycle is not skipped.
    assert "leaves wrote" not in without
    assert "stays wrote" in without
    assert f'"parent": "{version["name"]}"' in without


async def test_every_store_deletes_what_is_older_than_its_tasks_retention(scene: Services) -> None:
    pictures: list[Path] = []
    for word, days in (("old", RETENTION_DAYS + 2), ("new", RETENTION_DAYS - 2)):
        event = await scene.asked(word, f"{word} words", utc_now() - timedelta(days=days))
        await scene.publish("console", corrected(event))
        pictures.append(upload(scene.settings.artifacts_uri, scene.task, event.user_hash or "", event.occurred_at))
    await until(lambda: caught_up(scene.settings))
    stores = {"failure_miner", "console", "dataset_builder"}
    await until(lambda: scene.only_in("new words", stores))
    await until(lambda: scene.lake_has("new words"))

    async def gone() -> bool:
        return not await scene.tables_with("old words") and not await scene.lake_has("old words")

    await until(gone)
    assert set(await scene.tables_with("new words")) == stores
    assert await scene.lake_has("new words")
    await until(lambda: is_gone(pictures[0]))
    assert not await is_gone(pictures[1])
