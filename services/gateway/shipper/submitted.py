"""Logs the predictions that applications submit to Kafka themselves, redacted like the gateway's own.

consumes  predictions.submitted (raw text, retained for a day)
produces  predictions.logged (variant external)
"""

from __future__ import annotations

from schemas.base import Message, Variant
from schemas.predictions import PredictionLogged, PredictionSubmitted
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.recording.event_log import encode_event
from services.gateway.shipper.publisher import BatchPublisher
from services.gateway.shipper.redaction import RecordRedactor
from services.gateway.tasks.snapshot import TaskTable
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.identity import event_id, keyed_hash
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery

CURRENT = "current"
"""A `task_revision` that stands for the task's revision at the time of arrival."""


class SubmittedPredictions:
    """The consumer of predictions.submitted."""

    def __init__(
        self,
        tasks: TaskTable,
        redactor: RecordRedactor,
        publisher: BatchPublisher,
        subjects_key: bytes,
        status: ShipperStatus,
    ) -> None:
        self._tasks = tasks
        self._redactor = redactor
        self._publisher = publisher
        self._subjects_key = subjects_key
        self._status = status

    def subscribe(self, consumers: Consumers, max_records: int) -> None:
        consumers.on_batch(PredictionSubmitted, self.on_submitted, BatchOptions(max_records))

    async def on_submitted(self, deliveries: list[Delivery[PredictionSubmitted]]) -> None:
        """Log the predictions, then acknowledge them. A repeated prediction_id becomes the same event.

        Waits until the tasks are read. Raises InvalidMessage for an unknown task, DependencyUnavailable without Kafka.
        """
        records = [encode_event(await self._to_logged(delivery.event)) for delivery in deliveries]
        unpublished = await self._publisher.publish_once(await self._redactor.redact(records))
        if unpublished:
            raise DependencyUnavailable(
                f"Kafka did not accept {len(unpublished)} of {len(records)} submitted predictions"
            )
        self._status.submitted_logged += len(records)

    async def _to_logged(self, event: PredictionSubmitted) -> PredictionLogged:
        return PredictionLogged(
            event_id=event_id("predictions.logged", event.task, event.prediction_id),
            occurred_at=event.occurred_at,
            task=event.task,
            task_revision=await self._revision(event),
            cycle_id=event.cycle_id,
            prediction_id=event.prediction_id,
            messages=tuple(Message(role=m.role, content=_storable(m.content)) for m in event.messages),
            answer=_storable(event.answer),
            model=event.model,
            adapter=event.adapter,
            variant=Variant.EXTERNAL,
            confidence=event.confidence,
            user_hash=keyed_hash(self._subjects_key, event.user) if event.user else None,
            latency_ms=event.latency_ms,
            prompt_tokens=event.prompt_tokens,
            answer_tokens=event.answer_tokens,
            finish_reason=event.finish_reason,
        )

    async def _revision(self, event: PredictionSubmitted) -> str:
        task = await self._tasks.latest(event.task)
        if task is None:
            raise InvalidMessage(f"unknown task {event.task!r}", "Apply it: ratchet tasks apply FILE; then replay.")
        return task.task_revision if event.task_revision == CURRENT else event.task_revision


def _storable(text: str) -> str:
    """Remove NUL, which is legal in JSON but not in a database's text."""
    return text.replace("\x00", "")
