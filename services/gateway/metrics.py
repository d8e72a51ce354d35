"""What the gateway counts, for Prometheus. One registry an application, so that tests can build several."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ratchet_gateway_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ratchet_gateway_seconds", "Seconds until the answer.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.answers = Counter(
            "ratchet_gateway_answers", "Answers by task and arm.", ["task", "variant"], registry=self.registry
        )
        self.upstream_errors = Counter(
            "ratchet_gateway_upstream_errors", "Failed tries at a replica.", ["reason"], registry=self.registry
        )
        self.fallbacks = Counter(
            "ratchet_gateway_fallbacks", "Arms whose adapter no replica served.", ["task", "variant"],
            registry=self.registry,
        )  # fmt: skip
        self.log_failures = Counter(
            "ratchet_gateway_log_failures", "Answers withheld: the event log was away.", registry=self.registry
        )
        self.observations_dropped = Counter(
            "ratchet_gateway_observations_dropped", "Observations dropped: too many waited.", registry=self.registry
        )


class Measured:
    """ASGI middleware: counts and times every request, refused ones too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # The route's pattern, which FastAPI leaves in the scope: a made-up path must not become a label.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
