"""What every HTTP service has: a body limit, errors in OpenAI's shape, /healthz, and /readyz with what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import DependencyUnavailable, InvalidMessage, RatchetError, describe_validation_error, field_path

PROBED_PATHS = frozenset(("/healthz", "/readyz"))
_RETRY_AFTER = {"retry-after": "2"}


class HttpError(RatchetError):
    """A request's error response: its status, what went wrong, a code for programs, and headers.

    Without `headers`, 429 and 503 ask the client to retry in two seconds.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, code, status, param)
        self.headers = dict(headers or (_RETRY_AFTER if status in (429, 503) else {}))


def error_body(message: str, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object, so that its clients show the message."""
    kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def build_http(
    title: str,
    ready: Callable[[], list[str]],
    max_body_bytes: int = 64 * 1024,
    notes: Callable[[], list[str]] = list,
    sees_details: Callable[[Request], bool] = lambda _: True,
) -> FastAPI:
    """Return a FastAPI application with the parts that every service has.

    `ready` returns what is missing; empty means ready. `notes` returns what an operator should know although the
    service is ready. Callers for whom `sees_details` is False get the number of what is missing alone.
    """
    app: FastAPI = FastAPIOffline(
        title=title, docs_url="/docs", redoc_url=None
    )  # /docs serves its own script and styles.
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz(request: Request) -> JSONResponse:
        missing = ready()
        details = {"missing": missing, "notes": notes()} if sees_details(request) else {"missing_count": len(missing)}
        return JSONResponse({"ready": not missing, **details}, status_code=503 if missing else 200)

    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(HttpError)
    async def _http_error(_: Request, error: HttpError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    @app.exception_handler(ClientDisconnect)
    async def _disconnected(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # Nobody reads it; metrics count the request under it.

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        message, field = describe_validation_error(error, limit=1), field_path(error.errors()[0])
        return JSONResponse(error_body(message, "invalid_request", 422, field or None), status_code=422)

    @app.exception_handler(InvalidMessage)
    async def _invalid_message(_: Request, error: InvalidMessage) -> JSONResponse:
        return JSONResponse(error_body(f"{error.reason}. {error.way_out}".strip(), "invalid_request", 422), 422)

    @app.exception_handler(DependencyUnavailable)
    async def _unavailable(_: Request, error: DependencyUnavailable) -> JSONResponse:
        body = error_body(f"{error.reason}. {error.way_out}".strip(), "unavailable", 503)
        return JSONResponse(body, status_code=503, headers=_RETRY_AFTER)

    @app.exception_handler(HTTPException)
    async def _http_exception(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail), "http_error", error.status_code), error.status_code)


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return the application, usable by pages of these origins; the application itself where there are none.

    Cookies are never allowed: the key, which the page must send itself, decides who may do what. Browsers' preflight
    requests (OPTIONS) are answered here, without a key.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=["*"]
    )


class BodyLimit:
    """ASGI middleware that refuses a body over the limit, by its declared length or by what arrives, with 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        max_bytes = self._max
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > max_bytes:
            body = error_body(_over(max_bytes), "body_too_large", 413)
            return await JSONResponse(body, status_code=413)(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise HttpError(413, _over(max_bytes), "body_too_large")
            return message

        await self._app(scope, counted, send)


def _over(max_bytes: int) -> str:
    return f"the request body is over the limit of {max_bytes} bytes"
