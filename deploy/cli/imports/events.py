"""Makes events of rows: redacted as what comes through the gateway is, with ids of what they say. And sends them.

The ids are keyed hashes of the task, the messages, the label and the line's own id, so that a row that is imported
again is the same row, and nobody without the installation's key finds out by an id what somebody asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from deploy.cli.imports.rows import ImportedRow
from schemas.catalog import key_of, topic_of
from schemas.conversation import Call, ToolCall, plain_answer
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import PredictionLogged
from schemas.tasks import TaskChanged
from services.gateway.domain import Identifiers, unsigned_id
from services.gateway.shipper.redaction import RecordRedactor, RefusedRecord
from shared.errors import DependencyUnavailable
from shared.grading.tool_calls import split_calls
from shared.identity import content_hash, event_id
from shared.spool import Record

_PREFIX = "import-"


@dataclass(frozen=True)
class Ids:
    prediction: str
    correction: str


def ids_of(row: ImportedRow, task: str, identifiers: Identifiers) -> Ids:
    """The ids of a row; the same of the same messages, label and own id, whoever imports them from whichever file."""
    said = content_hash(orjson.dumps(row.asked), row.label, row.own_id or "", length=64)
    prediction = identifiers.predictions.derive(task, f"{_PREFIX}{said}")
    return Ids(prediction, f"{_PREFIX}{unsigned_id(prediction)}")


class EventMaker:
    """Makes the events of a task's rows. `redactor`: the gateway's, which knows what of a task is nobody's."""

    def __init__(self, task: TaskChanged, identifiers: Identifiers, redactor: RecordRedactor) -> None:
        self._task = task
        self._identifiers = identifiers
        self._redactor = redactor

    async def events(self, rows: Sequence[ImportedRow]) -> list[CorrectionSubmitted | Exception]:
        """The events without personal data, in order; of a row that cannot be redacted its error.

        Raises DependencyUnavailable if the redactor fails.
        """
        redacted = await self._redactor.redact([self._record(row) for row in rows])
        return [
            found.error if isinstance(found, RefusedRecord) else self._event(row, found)
            for row, found in zip(rows, redacted, strict=True)
        ]

    def _record(self, row: ImportedRow) -> Record:
        """A row in the form of a logged prediction, whose answer is the label: every text of it is looked at."""
        text, calls = split_calls(row.label)
        answer = {"text": text, "tool_calls": [call._asdict() for call in calls]}
        logged = {"task": self._task.task, "call": row.call, "answers": [answer]}
        return Record(topic_of(PredictionLogged).name, b"", orjson.dumps(logged))

    def _event(self, row: ImportedRow, record: Record) -> CorrectionSubmitted:
        logged = orjson.loads(record.value)
        (answer,) = logged["answers"]
        call = Call.model_validate(logged["call"])
        label = plain_answer(answer["text"], None, tuple(map(ToolCall.model_validate, answer["tool_calls"])))
        ids = ids_of(row, self._task.task, self._identifiers)
        return CorrectionSubmitted(
            event_id=event_id("correction", ids.correction),
            occurred_at=row.at,
            task=self._task.task,
            task_revision=self._task.task_revision,
            correction_id=ids.correction,
            request_id=ids.correction,
            prediction_id=ids.prediction,
            purpose=Purpose.IMPORT,
            reviewer=row.author,
            call=call,
            answers=(),
            label=label,
            session_hash=self._identifiers.session_hash(row.session),
            user_hash=self._identifiers.user_hash(row.user),
            predicted_at=row.at,
            redactions=logged.get("redactions", 0),
            surrogates=tuple(surrogate for surrogate in call.surrogates if surrogate in label),
            weight=row.weight,
        )


async def send(producer: AIOKafkaProducer, events: Iterable[CorrectionSubmitted]) -> None:
    """Return when all replicas have the events. Raises DependencyUnavailable; some of them may have arrived then."""
    topic = topic_of(CorrectionSubmitted).name
    headers = [("content-type", b"application/json")]
    try:
        acknowledged = [
            await producer.send(topic, event.model_dump_json().encode(), key=key_of(event).encode(), headers=headers)
            for event in events
        ]
        await asyncio.gather(*acknowledged)
    except (KafkaError, OSError) as error:
        reason = f"Kafka did not accept all rows: {error!r}"
        raise DependencyUnavailable(reason, "The same command goes on where this one stopped.") from error
