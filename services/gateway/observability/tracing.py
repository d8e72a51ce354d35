"""The caller's trace, carried on: into the events that a request leaves, and into spans where they are switched on.

Without spans an event carries what the caller sent. With them it carries the request's own span, a child of the
caller's: `TracingMiddleware` puts that into the request's headers before anybody reads them, so nothing behind it
knows which.
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
_QUIET = frozenset(("/healthz", "/readyz", "/metrics", "/v1/traces", "/v1/logs"))
"""Asked every few seconds by machines, with nothing to learn from it."""
_TOLD = {
    b"x-ratchet-prediction-id": "ratchet.prediction_id",
    b"x-ratchet-variant": "ratchet.variant",
    b"x-ratchet-adapter": "ratchet.adapter",
}


def event_headers(headers: Iterable[tuple[bytes, bytes]]) -> TraceHeaders:
    """The headers of the events of a request with these headers (ASGI's, names in lower case).

    Several traceparents, or one that is none, count as none, and their tracestate with them.
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
    """The application with a span a request; the very same one while tracing is off. Raises ConfigurationError."""
    provider = tracer_provider(settings, service)
    return app if provider is None else TracingMiddleware(app, provider.get_tracer("ratchet"))


class TracingMiddleware:
    """ASGI middleware: a server span a request, under the caller's if that sent one."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = tracer
        self._server = SpanKind.SERVER
        self._w3c = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _QUIET:
            return await self._app(scope, receive, send)
        span = self._begun(scope)
        inner = {**scope, "headers": self._carrying(span, scope["headers"])}
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in message.get("headers", ()):
                    if name in _TOLD:
                        span.set_attribute(_TOLD[name], value.decode("latin-1"))
            await send(message)

        try:
            await self._app(inner, receive, noted)
        finally:
            _end(span, inner, status)

    def _begun(self, scope: Scope) -> Span:
        caller = {name: value.decode("ascii") for name, value in event_headers(scope["headers"])}
        asked = {"http.request.method": scope["method"], "url.path": scope["path"]}
        return self._tracer.start_span(scope["method"], self._w3c.extract(caller), self._server, asked)

    def _carrying(self, span: Span, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, set_span_in_context(span))
        own = [(name.encode(), value.encode()) for name, value in carrier.items()]
        return [*(one for one in headers if one[0] not in (_PARENT, _STATE)), *own]


def _end(span: Span, scope: Scope, status: int) -> None:
    """The route's pattern, which FastAPI leaves in the scope, names the span: a made-up path must not."""
    from opentelemetry.trace import StatusCode

    route = getattr(scope.get("route"), "path", scope["path"] if status < 400 else None)
    if route:
        span.update_name(f"{scope['method']} {route}")
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()
