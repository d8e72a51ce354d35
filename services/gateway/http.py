"""The gateway's HTTP routes: the hot ones, which answer, are served by `AsgiApp`, all others by FastAPI."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from schemas.tasks import NO_TASK, TaskChanged
from services.gateway.answering.answer import Answerer
from services.gateway.answering.tokens import TokenCounter
from services.gateway.asgi.admission import RequestAdmission
from services.gateway.asgi.app import AsgiApp
from services.gateway.asgi.exchange import Endpoint
from services.gateway.formats.anthropic.errors import error_body as anthropic_error
from services.gateway.formats.anthropic.messages import MessagesRequest
from services.gateway.formats.api import ApiRequest
from services.gateway.formats.chat import ChatRequest
from services.gateway.formats.completions import CompletionRequest
from services.gateway.formats.observed import OBSERVED_APIS
from services.gateway.formats.openapi import ERRORS, FEEDBACK, document_answer_routes, predictions_schema, request_body
from services.gateway.formats.responses import ResponsesRequest
from services.gateway.handlers import MAX_PREDICTIONS, Handlers
from services.gateway.observability.metrics import Metrics
from shared.addresses import is_loopback
from shared.http import build_http

ANSWER_APIS: tuple[type[ApiRequest], ...] = (
    ChatRequest, CompletionRequest, ResponsesRequest, MessagesRequest, *OBSERVED_APIS,
)  # fmt: skip

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""Headers by which a proxy says whose request it forwards."""


def build_app(
    answerer: Answerer,
    handlers: Handlers,
    metrics: Metrics,
    missing: Callable[[], list[str]],
    notes: Callable[[], list[str]],
    admission: RequestAdmission,
    routers: Sequence[APIRouter] = (),
) -> AsgiApp:
    """The application. Bodies are parsed by hand in `formats/validation.py`.

    `missing` and `notes` are what /readyz reports, to this machine and to callers with a key.
    """
    max_body_bytes = max(admission.limits.body, admission.limits.telemetry)

    def sees_details(request: Request) -> bool:
        return _is_local(request) or handlers.has_access(request.headers.raw)

    app = build_http("Ratchet gateway", missing, max_body_bytes, notes, sees_details)
    for router in routers:
        app.include_router(router)
    _add_other_routes(app, handlers, metrics, admission)
    document_answer_routes(app)
    endpoints: dict[str, Endpoint] = {api.path: answerer.endpoint(api) for api in ANSWER_APIS}
    endpoints[TokenCounter.path] = answerer.count_tokens
    error_formats = dict.fromkeys((MessagesRequest.path, TokenCounter.path), anthropic_error)
    return AsgiApp(app, endpoints, metrics, admission, error_formats)


def _add_other_routes(app: FastAPI, handlers: Handlers, metrics: Metrics, admission: RequestAdmission) -> None:
    @app.get("/v1/models", responses=ERRORS)
    async def models(request: Request) -> Response:
        """The tasks that the key may use, and the models that pass through for it."""
        found = handlers.models(request.headers.raw)
        return _json({"object": "list", "data": [_model(model) for model in found]})

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str, request: Request) -> Response:
        return _json(_model(handlers.model(name, request.headers.raw)))

    @app.post("/v1/feedback", responses=ERRORS, openapi_extra=request_body(FEEDBACK))
    async def feedback(request: Request) -> Response:
        """What a user or an application says about an answer, at any time later. Idempotent."""
        headers = request.headers.raw
        async with admission.body_of(headers, request.receive) as (grant, body):
            return _json(await handlers.feedback(body, grant, headers))

    @app.post("/v1/predictions", responses=ERRORS, openapi_extra=request_body(predictions_schema(MAX_PREDICTIONS)))
    async def record_predictions(request: Request) -> Response:
        """Predictions that were made elsewhere."""
        headers = request.headers.raw
        async with admission.body_of(headers, request.receive) as (grant, body):
            return _json({"prediction_ids": await handlers.record_predictions(body, grant, headers)})

    @app.get("/metrics", include_in_schema=False)
    async def prometheus(request: Request) -> Response:
        handlers.require_metrics(request.headers.raw)
        return Response(generate_latest(metrics.exported), media_type=CONTENT_TYPE_LATEST)


def _is_local(request: Request) -> bool:
    """Return True for a request from this machine that no proxy has forwarded from another."""
    if request.client is None or not is_loopback(request.client.host):
        return False
    return not any(name in request.headers for name in _FORWARDED)


def _model(model: TaskChanged | str) -> dict[str, object]:
    if isinstance(model, str):
        return {"id": model, "object": "model", "created": 0, "owned_by": NO_TASK}
    created = int(model.occurred_at.timestamp())
    return {"id": model.task, "object": "model", "created": created, "owned_by": "ratchet"}


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
