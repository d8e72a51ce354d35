"""Fake redactors, and records to redact, for the tests of the shipper's redaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from schemas.base import Event, Variant
from schemas.conversation import Call, Message, Role
from schemas.predictions import FeedbackGiven, LoggedAnswer, PredictionLogged
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskChanged, TaskSpec
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.recording.event_log import encode_event
from services.gateway.shipper.redaction import RecordRedactor, RefusedRecord
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.redaction import RedactedSlice, Rules, TextSlice
from shared.spool import Record
from tests.unit.gateway.conftest import HAIKU, ORDERS, SUPPORT

BLANK = "#"
OPEN = HAIKU.model_copy(update={"name": "open", "redaction": RedactionSettings(enabled=False)})
PLAIN = HAIKU.model_copy(update={"name": "plain", "redaction": RedactionSettings(names=False)})


@dataclass
class Swaps:
    """A redactor that turns each Maria into a Paula and records its calls."""

    asked: list[tuple[list[str], Rules]] = field(default_factory=list)
    breaks_on: str | None = None

    def redact_slices(self, slices: Sequence[TextSlice], rules: Rules) -> list[RedactedSlice]:
        texts = [part.text[part.start : part.end] for part in slices]
        self.asked.append((texts, rules))
        if self.breaks_on is not None and any(self.breaks_on in text for text in texts):
            raise RuntimeError("no idea what this is")
        return [
            RedactedSlice(
                t.replace("Maria", "Paula"),
                n := t.count("Maria"),
                {"name": n} if n else {},
                part.end,
                surrogates=("Paula",) * n,
            )
            for t, part in zip(texts, slices, strict=True)
        ]

    @property
    def texts(self) -> list[str]:
        return [text for texts, _ in self.asked for text in texts]


@dataclass
class Blanks:
    """A redactor that replaces every text: what survives it was not redacted."""

    blank: str = BLANK

    def redact_slices(self, slices: Sequence[TextSlice], rules: Rules) -> list[RedactedSlice]:
        return [RedactedSlice(self.blank, 1, {"all": 1}, part.end) for part in slices]


@dataclass
class Setup:
    """A redactor of records with the tasks SUPPORT, HAIKU, ORDERS, OPEN (not redacted) and PLAIN (without names)."""

    redactor: RecordRedactor
    swaps: Any
    status: ShipperStatus
    tasks: LatestByKey[TaskChanged]

    async def redact(self, *events: Event) -> list[Any]:
        """The events as they are published."""
        redacted = await self.redactor.redact([encode_event(event) for event in events])
        return [record if isinstance(record, RefusedRecord) else orjson.loads(record.value) for record in redacted]

    async def redact_json(self, event: dict[str, Any], topic: str = "predictions.logged.v1") -> dict[str, Any]:
        """The event, given as its JSON, as it is published."""
        (record,) = await self.redactor.redact([Record(topic, b"k", orjson.dumps(event))])
        assert isinstance(record, Record), record.error
        published: dict[str, Any] = orjson.loads(record.value)
        return published


async def set_up(build: Callable[[Swaps], Any] = lambda swaps: swaps, cache_size: int = 100) -> Setup:
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    for spec in (SUPPORT, HAIKU, ORDERS, OPEN, PLAIN):
        await table.put(spec.name, TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))
    swaps, status, tasks = Swaps(), ShipperStatus(), table
    await tasks.read_to({})
    return Setup(RecordRedactor(tasks, lambda: build(swaps), cache_size, status), swaps, status, tasks)


def prediction(task: TaskSpec, asked: str, answer: str, system: str | None = None) -> PredictionLogged:
    messages = (
        Message(role=Role.SYSTEM, content=task.system_prompt if system is None else system),
        Message(role=Role.USER, content=asked),
    )
    return PredictionLogged(
        task=task.name, task_revision=task.revision, request_id="1" * 32, call=Call(messages=messages),
        answers=(LoggedAnswer(prediction_id=prediction_id(task.name), text=answer),),
        model="small", variant=Variant.BASE, latency_ms=1.0,
    )  # fmt: skip


def prediction_id(task: str) -> str:
    return f"{task}.{'1' * 32}.{'2' * 12}"


def feedback(task: TaskSpec, text: str) -> FeedbackGiven:
    return FeedbackGiven(
        task=task.name, task_revision=task.revision, prediction_id=prediction_id(task.name), kind="edited", text=text
    )
