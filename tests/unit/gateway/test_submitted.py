"""Predictions that applications write to Kafka themselves are logged under the newest revision of their task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from schemas.conversation import Media
from schemas.predictions import PredictionLogged, PredictionSubmitted
from schemas.tasks import TaskChanged
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.shipper.submitted import SubmittedPredictions
from services.gateway.tasks.snapshot import TaskTable
from shared.errors import InvalidMessage
from shared.kafka.delivery import Delivery, TopicPartition
from shared.kafka.latest_by_key import LatestByKey
from shared.spool import Record
from tests.unit.gateway.conftest import HAIKU


class Kafka:
    """Redacts nothing and accepts everything."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def redact(self, records: Sequence[Record]) -> Sequence[Record]:
        return records

    async def publish_once(self, records: Sequence[Record]) -> list[Record]:
        self.records += records
        return []


def submitted(table: LatestByKey[TaskChanged], kafka: Any) -> tuple[TaskTable, SubmittedPredictions]:
    tasks = TaskTable(table)
    return tasks, SubmittedPredictions(tasks, kafka, kafka, b"k" * 32, ShipperStatus())


def delivery(task: str) -> Delivery[PredictionSubmitted]:
    event = PredictionSubmitted(
        task=task, task_revision="current", prediction_id="p", model="m", answer="a", latency_ms=1.0,
        messages=({"role": "user", "content": "q"},),  # type: ignore[arg-type]
    )  # fmt: skip
    return Delivery(event, "predictions.submitted.v1", 0, 0, {})


async def test_a_prediction_gets_the_newest_revision_also_while_the_tasks_are_being_read() -> None:
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    kafka = Kafka()
    tasks, handler = submitted(table, kafka)
    reading = asyncio.create_task(tasks.read_to({TopicPartition("tasks.changed.v1", 0): 2}))
    handling = asyncio.create_task(handler.on_submitted([delivery(HAIKU.name)]))
    newest = HAIKU.model_copy(update={"system_prompt": "Write a limerick."})
    for offset, version in enumerate((HAIKU, newest)):
        await asyncio.sleep(0.02)
        assert not handling.done()
        await table.put(version.name, TaskChanged(task=version.name, task_revision=version.revision, spec=version))
        await table.advance(0, offset + 1)
    await asyncio.gather(reading, handling)
    (record,) = kafka.records
    assert orjson.loads(record.value)["task_revision"] == newest.revision != HAIKU.revision


async def test_a_prediction_of_an_unknown_task_can_never_be_logged() -> None:
    tasks, handler = submitted(LatestByKey("tasks.changed.v1"), Kafka())
    await tasks.read_to({})
    with pytest.raises(InvalidMessage, match="unknown task 'new'"):
        await handler.on_submitted([delivery("new")])


async def test_a_prediction_cannot_name_media_that_a_gateway_kept_of_somebody_else() -> None:
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    await table.put(HAIKU.name, TaskChanged(task=HAIKU.name, task_revision=HAIKU.revision, spec=HAIKU))
    kafka = Kafka()
    tasks, handler = submitted(table, kafka)
    await tasks.read_to({})
    picture = {"kind": "image", "hash": "h", "key": "media/haiku/2026-01-02/anonymous/abc"}
    messages = [{"role": "user", "content": [{"type": "image_url", "media": picture}, {"type": "text", "text": "?"}]}]
    event = delivery(HAIKU.name).event.model_copy(update={"messages": ()})
    event = PredictionSubmitted.model_validate({**event.model_dump(), "messages": messages})
    await handler.on_submitted([Delivery(event, "predictions.submitted.v1", 0, 0, {})])
    (record,) = kafka.records
    logged = PredictionLogged.model_validate_json(record.value)
    assert logged.call.messages[0].content[0].media == Media(kind="image", hash="h")
    assert not logged.call.is_whole
