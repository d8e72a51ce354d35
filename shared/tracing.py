"""Traces: the W3C context that travels with requests and records, and OpenTelemetry's spans where they are wanted.

Carrying a context on costs a look and needs no library. Spans are made only where `RATCHET_OTLP_ENDPOINT` says where
they go (the extra `tracing`); sampling, headers and certificates of the exporter are OpenTelemetry's own variables,
such as `OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS`. A span never holds a text of an event.
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
    """The headers that carry a trace on: nothing where `parent` is no traceparent, as W3C wants it."""
    found = _PARENT.fullmatch(parent) if parent else None
    if parent is None or found is None or found[1] == b"ff" or (found[1] == b"00" and found[2]):
        return ()
    if state and _STATE.fullmatch(state):
        return (PARENT, parent), (STATE, state)
    return ((PARENT, parent),)


def trace_headers_of(headers: Iterable[tuple[str, bytes | None]]) -> TraceHeaders:
    """The same of a record's headers."""
    named = dict(headers)
    return trace_headers(named.get(PARENT), named.get(STATE))


def pick_trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What a dead letter keeps of its record's headers, so that its trace goes on when it is replayed."""
    return {name: headers[name] for name in (PARENT, STATE) if name in headers}


def tracer_provider(settings: Settings, service: str) -> TracerProvider | None:
    """Makes the spans of a service and sends them on, in a thread; None: tracing is off. Raises ConfigurationError."""
    return _provider(settings.otlp_endpoint, service) if settings.otlp_endpoint else None


def consumer_middlewares(settings: Settings, service: str) -> tuple[Any, ...]:
    """What makes FastStream's brokers trace: a span for what is consumed and what is published."""
    provider = tracer_provider(settings, service)
    if provider is None:
        return ()
    from faststream.kafka.opentelemetry import KafkaTelemetryMiddleware

    return (KafkaTelemetryMiddleware(tracer_provider=provider),)


@cache
def _provider(endpoint: str, service: str) -> TracerProvider:
    """One a service in a process: each has a thread and a connection. It is emptied when the process ends."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"RATCHET_OTLP_ENDPOINT is set, but there is no OpenTelemetry here: {error}",
            "pip install 'ratchet-loop[tracing]', or unset it",
        ) from error
    address = endpoint.rstrip("/")
    address = address if address.endswith("/v1/traces") else f"{address}/v1/traces"
    provider = TracerProvider(resource=Resource.create({"service.name": f"ratchet-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address)))
    return provider
