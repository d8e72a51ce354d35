"""The gateway's HTTP: OpenAI's chat completions, and Ratchet's feedback and predictions."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from schemas.tasks import TaskChanged
from services.gateway.chat import sse
from services.gateway.handlers import Handlers
from services.gateway.metrics import Measured, Metrics
from shared.http import build_http


def build_app(
    handlers: Handlers,
    metrics: Metrics,
    ready: Callable[[], list[str]],
    notes: Callable[[], list[str]],
    max_body_bytes: int,
) -> FastAPI:
    """The application. Bodies are read by hand: see `chat.py`."""
    app = build_http("Ratchet gateway", ready, max_body_bytes, notes)
    app.add_middleware(Measured, metrics=metrics)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        answer = await handlers.answer(await request.body())
        if not answer.stream:
            return Response(orjson.dumps(answer.body), headers=answer.headers, media_type="application/json")
        # The whole answer was kept before its first byte leaves, so a stream is its parts sent at once.
        events = b"".join(sse(answer.body, answer.include_usage))
        headers = {**answer.headers, "cache-control": "no-cache"}
        return Response(events, headers=headers, media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [_model(task) for task in handlers.tasks()]})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        return _json(_model(handlers.task(name)))

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        return _json(await handlers.feedback(await request.body()))

    @app.post("/v1/predictions")
    async def predictions(request: Request) -> Response:
        return _json({"prediction_ids": await handlers.record(await request.body())})

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _model(task: TaskChanged) -> dict[str, object]:
    created = int(task.occurred_at.timestamp())
    return {"id": task.task, "object": "model", "created": created, "owned_by": "ratchet"}


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
