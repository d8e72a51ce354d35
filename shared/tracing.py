"""Traces: the W3C trace context of requests and records, and OpenTelemetry spans where they are switched on.

Passing a context on is cheap and needs no library. Spans are made only where `RATCHET_OTLP_ENDPOINT` is set (the extra
`tracing`); the exporter's sampling, headers and certificates are OpenTelemetry's own variables, such as
`OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS`. A span never holds text of an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from shared.errors import ConfigurationError
from shared.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

PARENT = "traceparent"
STATE = "tracestate"
_PARENT = re.compile(rb"([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{1,200})?")
_STATE = re.compile(rb"[\t -~]{1,512}")

TraceHeaders = tuple[tuple[str, bytes], ...]


def trace_headers(parent: bytes | None, state: bytes | None = None) -> TraceHeaders:
    """Return the headers that pass a trace on: none where `parent` is not a valid W3C traceparent."""
    match = _PARENT.fullmatch(parent) if parent else None
    if parent is None or match is None or match[1] == b"ff" or (match[1] == b"00" and match[2]):
        return ()
    if state and _STATE.fullmatch(state):
        return (PARENT, parent), (STATE, state)
    return ((PARENT, parent),)


def trace_headers_of(headers: Iterable[tuple[str, bytes | None]]) -> TraceHeaders:
    """Return those of a record's headers that pass its trace on."""
    by_name = dict(headers)
    return trace_headers(by_name.get(PARENT), by_name.get(STATE))


def pick_trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that a dead letter takes over from its record, so that a replay continues the trace."""
    return {name: headers[name] for name in (PARENT, STATE) if name in headers}


def tracer_provider(settings: Settings, service: str) -> TracerProvider | None:
    """Return what makes and exports a service's spans, or None if tracing is off. Raises ConfigurationError."""
    return _provider(settings.otlp_endpoint, service) if settings.otlp_endpoint else None


def consumer_middlewares(settings: Settings, service: str) -> tuple[Any, ...]:
    """Return the FastStream middlewares that make a span for each record consumed and published."""
    provider = tracer_provider(settings, service)
    if provider is None:
        return ()
    from faststream.kafka.opentelemetry import KafkaTelemetryMiddleware

    return (KafkaTelemetryMiddleware(tracer_provider=provider),)


@cache
def _provider(endpoint: str, service: str) -> TracerProvider:
    """One per service and process: each has a thread and a connection, and is flushed when the process ends."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"RATCHET_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: {error}",
            "In Ratchet's checkout: pip install '.[tracing]'; or unset it",
        ) from error
    address = endpoint.rstrip("/")
    address = address if address.endswith("/v1/traces") else f"{address}/v1/traces"
    provider = TracerProvider(resource=Resource.create({"service.name": f"ratchet-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address)))
    return provider
