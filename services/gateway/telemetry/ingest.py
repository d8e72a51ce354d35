"""Logs the model calls that applications report through OpenTelemetry, like the gateway's own.

produces  predictions.logged (variant external), requests.observed; only the latter for a failed call
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

from services.gateway.auth.grants import Grant
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.event_log import EventLog
from services.gateway.recording.external import ExternalPredictions
from services.gateway.tasks.served import ServedTask, ServedTasks
from services.gateway.telemetry.correlation import CorrelationBuffer
from services.gateway.telemetry.genai import (
    has_content,
    is_generation,
    may_be_generation,
)
from services.gateway.telemetry.genai_call import model_of, response_id_of
from services.gateway.telemetry.predictions import records_of_span
from services.gateway.telemetry.spans import MalformedTelemetry, Span, SpanEvent, read_logs, read_spans
from shared.http import HttpError
from shared.spool import Record

TASK_ATTRIBUTE = "ratchet.task"
_GROUP_SIZE = 16
"""Spans handled before other requests run: about a millisecond."""
_MAX_REASONS = 5
_WAY_OUT_TASK = (
    "set OTEL_RESOURCE_ATTRIBUTES=ratchet.task=<task> in the application, or RATCHET_GATEWAY_TRACES_TASKS here"
)
_WAY_OUT_MESSAGES = (
    "no messages: set OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=span_only in the application, with "
    "opentelemetry-instrumentation-openai-v2 also OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental"
)

T = TypeVar("T")


@dataclass(frozen=True)
class IngestOptions:
    """`task_names`: the task of a `service.name` or a model; `max_items`: spans or log records per request."""

    task_names: Mapping[str, str]
    max_items: int


class ExportResult(NamedTuple):
    """How many spans or records were rejected, and why; `message` may be a warning although none was."""

    rejected: int = 0
    message: str = ""


class _Converted(NamedTuple):
    """A span and its records; None: its messages have not arrived. `is_buffered`: it is in the correlation buffer."""

    span: Span
    records: list[Record] | None
    is_buffered: bool

    @property
    def outcome(self) -> str:
        return "waiting" if self.records is None else "failed" if self.span.failed else "logged"


class _Rejected(Exception):
    """A span that cannot be logged; the rest of its request can."""


class TelemetryIngest:
    def __init__(
        self,
        tasks: ServedTasks,
        log: EventLog,
        external: ExternalPredictions,
        metrics: Metrics,
        buffer: CorrelationBuffer,
        options: IngestOptions,
    ) -> None:
        self._tasks = tasks
        self._log = log
        self._external = external
        self._metrics = metrics
        self._buffer = buffer
        self._options = options

    async def ingest_spans(self, body: bytes, grant: Grant, *, as_json: bool) -> ExportResult:
        """Log the model calls among the spans; ignore other spans. Idempotent.

        Raises MalformedTelemetry, HttpError 503 while no task is known, DependencyUnavailable without space: retry.
        """
        spans = await self._read(read_spans(body, as_json=as_json, wanted=may_be_generation))
        return await self._ingest([span for span in spans if self._is_new_generation(span)], grant)

    async def ingest_logs(self, body: bytes, grant: Grant, *, as_json: bool) -> ExportResult:
        """Join log records with their spans, whichever came first. Raises as `ingest_spans` does."""
        by_span: dict[tuple[str, str], list[SpanEvent]] = {}
        for record in await self._read(read_logs(body, as_json=as_json)):
            if has_content(record.event):
                by_span.setdefault((record.trace_id, record.span_id), []).append(record.event)
        spans: list[Span | None] = []
        for group in _groups(by_span.items()):
            spans += await asyncio.to_thread(self._buffer_events, group)
        return await self._ingest([span for span in spans if span is not None], grant, buffered=True)

    def _buffer_events(self, group: list[tuple[tuple[str, str], list[SpanEvent]]]) -> list[Span | None]:
        return [self._buffer.add_events(trace_id, span_id, events) for (trace_id, span_id), events in group]

    async def _ingest(self, spans: Iterable[Span], grant: Grant, *, buffered: bool = False) -> ExportResult:
        """`buffered`: the spans are in the correlation buffer, and stay there while messages are missing."""
        rejected: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        for group in _groups(spans):
            records: list[Record] = []
            finished = []
            for span in group:
                try:
                    converted = await self._convert(span, grant, buffered)
                except (_Rejected, ValueError, HttpError) as error:
                    rejected[_reason(error)] += 1
                    finished.append(span)
                    continue
                if converted.records is not None:
                    records += converted.records
                    finished += [span] if converted.is_buffered else []
                outcomes[converted.outcome] += 1
            if records:
                await self._log.append(records)
            for span in finished:
                await asyncio.to_thread(self._buffer.remove, span)
            await asyncio.sleep(0)
        outcomes["rejected"] = rejected.total()
        if buffered:
            del outcomes["waiting"]  # They were counted when they entered the buffer.
        for outcome, count in outcomes.items():
            self._metrics.spans.labels(outcome).inc(count)
        return _result(rejected, outcomes["waiting"])

    async def _convert(self, span: Span, grant: Grant, buffered: bool) -> _Converted:
        """Convert a span to records. If its messages have not arrived, put it into the buffer."""
        task = self._task(span, grant)
        records = records_of_span(span, task, self._external, grant.app)
        if records is None and not buffered:
            buffered = True
            span = await asyncio.to_thread(self._buffer.add_span, span)
            records = records_of_span(span, task, self._external, grant.app)
        return _Converted(span, records, buffered)

    async def _read(self, items: Iterator[T]) -> list[T]:
        """Read a request's items, a few at a time, so that other requests run. MalformedTelemetry if too many."""
        found: list[T] = []
        for item in items:
            found.append(item)
            if len(found) > self._options.max_items:
                message = f"more than {self._options.max_items} in one request: set a smaller batch in the exporter"
                raise MalformedTelemetry(message)
            if not len(found) % _GROUP_SIZE:
                await asyncio.sleep(0)
        return found

    def _is_new_generation(self, span: Span) -> bool:
        """Return True for a model call, unless it went through this gateway and is logged or observed already.

        Raises HttpError 503 while no task is known.
        """
        if not is_generation(span.attributes):
            return False
        is_own = self._is_own(span)
        if is_own:
            self._metrics.spans.labels("known").inc()
        return not is_own

    def _is_own(self, span: Span) -> bool:
        """A failed call has no response whose id would tell, and OpenInference has no ids: the model does, since the
        gateway's clients name a task there; LiteLLM's with a provider in front."""
        if (response_id := response_id_of(span.attributes)) is not None:
            return self._external.identifiers.predictions.task_of(response_id) is not None
        try:
            self._tasks.get((model_of(span.attributes) or "").rpartition("/")[2])
        except HttpError as error:
            if error.status == 503:
                raise
            return False
        return True

    def _task(self, span: Span, grant: Grant) -> ServedTask:
        """Raises _Rejected for no task, or one that the key does not allow; HttpError 503 while no task is known."""
        service = str(span.resource.get("service.name", ""))
        named = span.attributes.get(TASK_ATTRIBUTE) or span.resource.get(TASK_ATTRIBUTE)
        names = self._options.task_names
        name = str(named or names.get(service) or names.get(model_of(span.attributes) or "") or service)
        try:
            grant.require(name)
            return self._tasks.get(name)
        except HttpError as error:
            if error.status == 503:
                raise
            way_out = "" if named else f"; {_WAY_OUT_TASK}"
            raise _Rejected(f"service {service[:100]!r}: {error}{way_out}") from error


def _groups(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(islice(iterator, _GROUP_SIZE)):
        yield group


def _reason(error: Exception) -> str:
    """Why a span was rejected. Raises an HttpError 503 again, because it is not the span's fault."""
    if isinstance(error, HttpError) and error.status == 503:
        raise error
    return str(error)[:500]


def _result(rejected: Counter[str], waiting: int) -> ExportResult:
    messages = [f"{count}: {reason}" for reason, count in rejected.most_common(_MAX_REASONS)]
    if waiting:
        messages.append(f"{waiting} wait for /v1/logs: {_WAY_OUT_MESSAGES}")
    return ExportResult(rejected.total(), "; ".join(messages))
