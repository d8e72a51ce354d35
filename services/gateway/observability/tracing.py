"""Propagates the caller's trace to the events of a request, and to a span per request where tracing is on.

Without spans an event carries the trace headers that the caller sent. With them it carries the request's own span, a
child of the caller's: `TracingMiddleware` replaces the request's trace headers before anything else reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.settings import Settings
from shared.tracing import PARENT, STATE, TraceHeaders, trace_headers, tracer_provider

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_PARENT, _STATE = PARENT.encode(), STATE.encode()
_UNTRACED_PATHS = frozenset(("/healthz", "/readyz", "/metrics", "/v1/traces"))
"""Polled by machines every few seconds, or telemetry itself."""
_ATTRIBUTES = {
    b"x-ratchet-prediction-id": "ratchet.prediction_id",
    b"x-ratchet-variant": "ratchet.variant",
    b"x-ratchet-adapter": "ratchet.adapter",
}


def event_headers(headers: Iterable[tuple[bytes, bytes]]) -> TraceHeaders:
    """The trace headers for the events of a request with these headers (ASGI's, names in lower case).

    None if there is no valid traceparent, or more than one.
    """
    parent = state = None
    for name, value in headers:
        if name == _PARENT:
            if parent is not None:
                return ()
            parent = value
        elif name == _STATE:
            state = value if state is None else state + b"," + value
    return trace_headers(parent, state) if parent is not None else ()


def with_spans(app: ASGIApp, settings: Settings, service: str) -> ASGIApp:
    """The application with a span per request; unchanged while tracing is off. Raises ConfigurationError."""
    provider = tracer_provider(settings, service)
    return app if provider is None else TracingMiddleware(app, provider.get_tracer("ratchet"))


class TracingMiddleware:
    """ASGI middleware that makes a server span of each request, a child of the caller's span if there is one."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = tracer
        self._server = SpanKind.SERVER
        self._w3c = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED_PATHS:
            return await self._app(scope, receive, send)
        span = self._start_span(scope)
        inner = {**scope, "headers": self._with_trace(span, scope["headers"])}
        status = 500

        async def send_noting_attributes(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in message.get("headers", ()):
                    if name in _ATTRIBUTES:
                        span.set_attribute(_ATTRIBUTES[name], value.decode("latin-1"))
            await send(message)

        try:
            await self._app(inner, receive, send_noting_attributes)
        finally:
            _end(span, inner, status)

    def _start_span(self, scope: Scope) -> Span:
        caller = {name: value.decode("ascii") for name, value in event_headers(scope["headers"])}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        return self._tracer.start_span(scope["method"], self._w3c.extract(caller), self._server, attributes)

    def _with_trace(self, span: Span, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, set_span_in_context(span))
        trace = [(name.encode(), value.encode()) for name, value in carrier.items()]
        return [*(header for header in headers if header[0] not in (_PARENT, _STATE)), *trace]


def _end(span: Span, scope: Scope, status: int) -> None:
    """End the span. Its name is the route's pattern, which FastAPI stores in the scope, never an invented path."""
    from opentelemetry.trace import StatusCode

    route = getattr(scope.get("route"), "path", scope["path"] if status < 400 else None)
    if route:
        span.update_name(f"{scope['method']} {route}")
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()
