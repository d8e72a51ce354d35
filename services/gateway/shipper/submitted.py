"""Logs the predictions that applications submit to Kafka themselves, redacted like the gateway's own.

consumes  predictions.submitted (raw text, retained for a day)
produces  predictions.logged (variant external)
"""

from __future__ import annotations

from typing import Any

from schemas.predictions import PredictionSubmitted
from schemas.tasks import TaskChanged
from services.gateway.formats.api import Choice, TokenUsage
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.recording.external import ExternalPredictions, ExternalReport, call_of_messages
from services.gateway.shipper.publisher import BatchPublisher
from services.gateway.shipper.redaction import RecordRedactor
from shared.answers.measure import ConfidenceMeasure
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.http import HttpError
from shared.kafka.consumers import BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.spool import Record

CURRENT = "current"
"""A `task_revision` that stands for the task's revision at the time of arrival."""

_MAX_RECORDS = 500
"""Handled at once."""
_FIELDS = {"messages", "tool_calls", "tools", "tool_choice", "response_format", "parameters"}
"""Of the event, which have the form that the call and the answer have."""


class SubmittedPredictions:
    """The consumer of predictions.submitted."""

    def __init__(
        self,
        tasks: LatestByKey[TaskChanged],
        redactor: RecordRedactor,
        publisher: BatchPublisher,
        external: ExternalPredictions,
        status: ShipperStatus,
    ) -> None:
        self._tasks = tasks
        self._redactor = redactor
        self._publisher = publisher
        self._external = external
        self._status = status

    def subscribe(self, consumers: Consumers) -> None:
        consumers.on_batch(PredictionSubmitted, self.on_submitted, BatchOptions(_MAX_RECORDS))

    async def on_submitted(self, deliveries: list[Delivery[PredictionSubmitted]]) -> None:
        """Log the predictions, then acknowledge them. A repeated prediction_id becomes the same event.

        Waits until the tasks are read. Raises InvalidMessage for an unknown task, and for what an event cannot carry;
        DependencyUnavailable without Kafka.
        """
        records = [await self._record(_dated(delivery)) for delivery in deliveries]
        unpublished = await self._publisher.publish_once(await self._redactor.redact(records))
        if unpublished:
            raise DependencyUnavailable(
                f"Kafka did not accept {len(unpublished)} of {len(records)} submitted predictions"
            )
        self._status.submitted_logged += len(records)

    async def _record(self, event: PredictionSubmitted) -> Record:
        """Raises InvalidMessage for an unknown task, and for what an event cannot carry."""
        revision = await self._revision(event)
        try:
            return self._external.record(self._report(event, revision))[1]
        except HttpError as error:
            raise InvalidMessage(str(error)) from error

    def _report(self, event: PredictionSubmitted, revision: str) -> ExternalReport:
        given = event.model_dump(mode="json", include=_FIELDS, exclude_defaults=True)
        _drop_media_keys(given["messages"])
        calls, finish_reason = given.pop("tool_calls", ()), event.finish_reason
        return ExternalReport(
            task=event.task,
            task_revision=revision,
            call=call_of_messages(given.pop("messages"), **given),
            answers=[Choice(event.answer, (), finish_reason, calls, event.refusal, event.reasoning)],
            caller=self._external.caller(
                event.user, event.session, event.metadata, event.app, parameters=event.parameters
            ),
            own_id=event.prediction_id,
            model=event.model,
            adapter=event.adapter,
            confidence=ConfidenceMeasure(**event.confidence.model_dump()),
            usage=TokenUsage(event.prompt_tokens, event.answer_tokens),
            latency_ms=event.latency_ms,
            occurred_at=event.occurred_at,
        )

    async def _revision(self, event: PredictionSubmitted) -> str:
        task = await self._tasks.latest(event.task)
        if task is None:
            raise InvalidMessage(f"unknown task {event.task!r}", "Apply it: ratchet tasks apply FILE; then replay.")
        return task.task_revision if event.task_revision == CURRENT else event.task_revision


def _dated(delivery: Delivery[PredictionSubmitted]) -> PredictionSubmitted:
    """Return the event, of when it was sent where it has no time of its own.

    By the time of reading, whoever was forgotten meanwhile would have asked again, at each replay.
    """
    event, sent_at = delivery.event, delivery.sent_at
    if "occurred_at" in event.model_fields_set or sent_at is None:
        return event
    return event.model_copy(update={"occurred_at": sent_at})


def _drop_media_keys(messages: list[dict[str, Any]]) -> None:
    """Only a gateway keeps media: the key that a producer names would be of another request, maybe another person's."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            (part.get("media") or {}).pop("key", None)
