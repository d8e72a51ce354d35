"""Answers of models that an application's OpenTelemetry instrumentation tells of, logged like our own.

produces  predictions.logged (variant external), requests.observed; failed calls only the latter
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import NamedTuple, TypeVar

from schemas.base import Event
from services.gateway.auth.grants import Grant
from services.gateway.domain import PredictionIds
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.event_log import EventLog, encode_event
from services.gateway.tasks.served import ServedTask, ServedTasks
from services.gateway.telemetry.correlation import CorrelationBuffer
from services.gateway.telemetry.genai import (
    is_content,
    is_generation,
    may_be_generation,
    model_of,
    response_id_of,
    user_of,
)
from services.gateway.telemetry.predictions import events_of
from services.gateway.telemetry.spans import MalformedTelemetry, Span, SpanEvent, read_logs, read_spans
from shared.http import HttpError
from shared.identity import keyed_hash
from shared.spool import Record
from shared.tracing import PARENT

TASK = "ratchet.task"
_AT_ONCE = 16
"""Spans handled before others have their turn: about a millisecond."""
_REASONS = 5
_NAME_IT = "set OTEL_RESOURCE_ATTRIBUTES=ratchet.task=<task> in the application, or RATCHET_GATEWAY_TRACES_TASKS here"
_NO_MESSAGES = (
    "no messages: set OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=span_only in the application, with "
    "opentelemetry-instrumentation-openai-v2 also OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental"
)

T = TypeVar("T")


class ExportResult(NamedTuple):
    """How many spans or records were not taken, and why; `message` may warn where all were."""

    rejected: int = 0
    message: str = ""


class _Seen(NamedTuple):
    """A span and its events; None: its messages have not come. `waited`: it is in the waiting room."""

    span: Span
    events: list[Event] | None
    waited: bool

    @property
    def outcome(self) -> str:
        return "waiting" if self.events is None else "failed" if self.span.failed else "logged"

    @property
    def records(self) -> list[Record]:
        """As Kafka will have them, in the trace that the span is of."""
        trace = ((PARENT, f"00-{self.span.trace_id}-{self.span.span_id}-01".encode()),)
        return [replace(encode_event(event), headers=trace) for event in self.events or ()]


class _Rejected(Exception):
    """One span cannot be logged; the rest of the batch can."""


class TelemetryIngest:
    def __init__(
        self,
        tasks: ServedTasks,
        log: EventLog,
        ids: PredictionIds,
        subjects_key: bytes,
        metrics: Metrics,
        room: CorrelationBuffer,
        names: Mapping[str, str],
        most: int,
    ) -> None:
        """`names`: the task of a `service.name` or a model; `most` spans or log records a request."""
        self._tasks = tasks
        self._log = log
        self._ids = ids
        self._subjects_key = subjects_key
        self._metrics = metrics
        self._room = room
        self._names = names
        self._most = most

    async def ingest_spans(self, body: bytes, grant: Grant, *, as_json: bool) -> ExportResult:
        """Log the answers among the spans; what else an app does is none of our business. The same again is the same
        fact. Raises MalformedTelemetry, HttpError 503 while no task is known, DependencyUnavailable.
        """
        spans = await self._all(read_spans(body, as_json=as_json, wanted=may_be_generation))
        return await self._take([span for span in spans if self._is_news(span)], grant)

    async def ingest_logs(self, body: bytes, grant: Grant, *, as_json: bool) -> ExportResult:
        """Join what log records say of spans with these, whichever came first. Raises as `take_spans` does."""
        by_span: dict[tuple[str, str], list[SpanEvent]] = {}
        for record in await self._all(read_logs(body, as_json=as_json)):
            if is_content(record.said):
                by_span.setdefault((record.trace_id, record.span_id), []).append(record.said)
        met: list[Span | None] = []
        for group in _groups(by_span.items()):
            met += await asyncio.to_thread(self._put_said, group)
        return await self._take([span for span in met if span is not None], grant, waited=True)

    def _put_said(self, group: list[tuple[tuple[str, str], list[SpanEvent]]]) -> list[Span | None]:
        return [self._room.put_said(trace_id, span_id, said) for (trace_id, span_id), said in group]

    async def _take(self, spans: Iterable[Span], grant: Grant, *, waited: bool = False) -> ExportResult:
        """`waited`: the spans are in the waiting room, and stay there while messages are missing."""
        rejected: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        for group in _groups(spans):
            records: list[Record] = []
            left = []  # Those of the group that have no business in the waiting room any more.
            for span in group:
                try:
                    one = await self._whole(span, grant, waited)
                except (_Rejected, ValueError, HttpError) as error:
                    rejected[_reason(error)] += 1
                    left.append(span)
                    continue
                if one.events is not None:
                    records += one.records
                    left += [span] if one.waited else []
                outcomes[one.outcome] += 1
            if records:
                await self._log.append(records)
            for span in left:
                await asyncio.to_thread(self._room.drop, span)
            await asyncio.sleep(0)
        outcomes["rejected"] = rejected.total()
        if waited:
            del outcomes["waiting"]  # They did so before, and were counted then.
        for outcome, count in outcomes.items():
            self._metrics.spans.labels(outcome).inc(count)
        return _taken(rejected, outcomes["waiting"])

    async def _whole(self, span: Span, grant: Grant, waited: bool) -> _Seen:
        """The span with its events, if its messages are on it or came before it; else it is put to wait for them."""
        task = self._task(span, grant)
        events = self._events(span, task)
        if events is None and not waited:
            waited = True
            span = await asyncio.to_thread(self._room.put_span, span)
            events = self._events(span, task)
        return _Seen(span, events, waited)

    async def _all(self, items: Iterator[T]) -> list[T]:
        """All of a request, read a few at a time, so that nobody's answer waits. MalformedTelemetry if too many."""
        found: list[T] = []
        for item in items:
            found.append(item)
            if len(found) > self._most:
                raise MalformedTelemetry(f"more than {self._most} in one request: set a smaller batch in the exporter")
            if not len(found) % _AT_ONCE:
                await asyncio.sleep(0)
        return found

    def _is_news(self, span: Span) -> bool:
        """Whether it is an answer of a model, and none that went through this gateway and is logged already."""
        if not is_generation(span.attributes):
            return False
        response_id = response_id_of(span.attributes)
        ours = response_id is not None and self._ids.task_of(response_id) is not None
        if ours:
            self._metrics.spans.labels("known").inc()
        return not ours

    def _task(self, span: Span, grant: Grant) -> ServedTask:
        """Raises _Rejected where no task is named, or not one of the key's; HttpError 503 while none is known."""
        service = str(span.resource.get("service.name", ""))
        named = span.attributes.get(TASK) or span.resource.get(TASK)
        name = str(named or self._names.get(service) or self._names.get(model_of(span.attributes) or "") or service)
        try:
            grant.require(name)
            return self._tasks.get(name)
        except HttpError as error:
            if error.status == 503:
                raise
            way_out = "" if named else f"; {_NAME_IT}"
            raise _Rejected(f"service {service[:100]!r}: {error}{way_out}") from error

    def _events(self, span: Span, task: ServedTask) -> list[Event] | None:
        user = user_of(span.attributes)
        user_hash = keyed_hash(self._subjects_key, user) if user else None
        return events_of(span, task, self._ids.derive(task.name, f"{span.trace_id}-{span.span_id}"), user_hash)


def _groups(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while group := list(islice(rest, _AT_ONCE)):
        yield group


def _reason(error: Exception) -> str:
    """Why a span was rejected. Raises an HttpError that says to come again: it is not the span's fault."""
    if isinstance(error, HttpError) and error.status == 503:
        raise error
    return str(error)[:500]


def _taken(rejected: Counter[str], waiting: int) -> ExportResult:
    told = [f"{count}: {reason}" for reason, count in rejected.most_common(_REASONS)]
    if waiting:
        told.append(f"{waiting} wait for /v1/logs: {_NO_MESSAGES}")
    return ExportResult(rejected.total(), "; ".join(told))
