"""Logs the model calls that applications report through OpenTelemetry, like the gateway's own.

produces  predictions.logged (variant external), requests.observed; only the latter for a failed call
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from services.gateway.asgi.large_work import LargeWork
from services.gateway.auth.grants import Grant
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.event_log import SpoolEventLog
from services.gateway.recording.external import ExternalPredictions
from services.gateway.tasks.served import ServedTask, ServedTasks
from services.gateway.telemetry.genai import is_generation, may_be_generation
from services.gateway.telemetry.genai_call import model_of, response_id_of
from services.gateway.telemetry.predictions import records_of_span
from services.gateway.telemetry.spans import MalformedTelemetry, Span, read_spans
from shared.http import HttpError
from shared.spool import Record

TASK_ATTRIBUTE = "ratchet.task"
MAX_SPANS = 10_000
"""Of one request."""
_GROUP_SIZE = 32
"""Records written before other requests run: about a millisecond."""
_MAX_REASONS = 5
_WAY_OUT_TASK = (
    "set OTEL_RESOURCE_ATTRIBUTES=ratchet.task=<task> in the application, or RATCHET_GATEWAY_TRACES_TASKS here"
)


class ExportResult(NamedTuple):
    """How many spans were rejected, and why."""

    rejected: int = 0
    message: str = ""


class _Rejected(Exception):
    """A span that cannot be logged; the rest of its request can."""


class TelemetryIngest:
    def __init__(
        self,
        tasks: ServedTasks,
        log: SpoolEventLog,
        external: ExternalPredictions,
        metrics: Metrics,
        task_names: Mapping[str, str],
        large_work: LargeWork,
    ) -> None:
        """`task_names`: the task of a `service.name` or a model."""
        self._tasks = tasks
        self._log = log
        self._external = external
        self._metrics = metrics
        self._task_names = task_names
        self._large_work = large_work

    async def ingest(self, body: bytes, grant: Grant, *, as_json: bool) -> ExportResult:
        """Log the model calls among the spans; ignore other spans. Idempotent.

        Raises MalformedTelemetry, HttpError 503 while no task is known, DependencyUnavailable without space: retry.
        """
        records, outcomes, rejected = await self._large_work.run(len(body), self._read, body, grant, as_json)
        for start in range(0, len(records), _GROUP_SIZE):
            await self._log.append(records[start : start + _GROUP_SIZE])
            await asyncio.sleep(0)
        for outcome, count in outcomes.items():
            self._metrics.spans.labels(outcome).inc(count)
        reasons = "; ".join(f"{count}: {reason}" for reason, count in rejected.most_common(_MAX_REASONS))
        return ExportResult(outcomes["rejected"], reasons)

    def _read(self, body: bytes, grant: Grant, as_json: bool) -> tuple[list[Record], Counter[str], Counter[str]]:
        """The records of a request's spans, what became of the spans, and why some were rejected. May be called in a
        thread."""
        spans = list(islice(read_spans(body, as_json=as_json, wanted=may_be_generation), MAX_SPANS + 1))
        if len(spans) > MAX_SPANS:
            raise MalformedTelemetry(f"more than {MAX_SPANS} in one request: set a smaller batch in the exporter")
        records: list[Record] = []
        outcomes: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        for span in (span for span in spans if is_generation(span.attributes)):
            if self._is_own(span):
                outcomes["known"] += 1
                continue
            try:
                records += records_of_span(span, self._task(span, grant), self._external, grant.app)
                outcomes["failed" if span.failed else "logged"] += 1
            except (_Rejected, ValueError, HttpError) as error:
                outcomes["rejected"] += 1
                rejected[_reason(error)] += 1
        return records, outcomes, rejected

    def _is_own(self, span: Span) -> bool:
        """Return True for a call that went through this gateway, which is logged already.

        A failed call has no response whose id would tell, and OpenInference has no ids: the model does, since the
        gateway's clients name a task there; LiteLLM's with a provider in front. Raises HttpError 503 while no task is
        known.
        """
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
        names = self._task_names
        name = str(named or names.get(service) or names.get(model_of(span.attributes) or "") or service)
        try:
            grant.require(name)
            return self._tasks.get(name)
        except HttpError as error:
            if error.status == 503:
                raise
            way_out = "" if named else f"; {_WAY_OUT_TASK}"
            raise _Rejected(f"service {service[:100]!r}: {error}{way_out}") from error


def _reason(error: Exception) -> str:
    """Why a span was rejected. Raises an HttpError 503 again, because it is not the span's fault."""
    if isinstance(error, HttpError) and error.status == 503:
        raise error
    return str(error)[:500]
