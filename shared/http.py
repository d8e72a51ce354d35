"""What every HTTP service has: a body limit, errors in OpenAI's shape, /healthz, /readyz that tells the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import DependencyUnavailable, InvalidMessage

_AGAIN = {"retry-after": "2"}


class HttpError(Exception):
    """An answer that is an error: status, what went wrong, a code that a program can test, and what headers say.

    Without `headers`, 429 and 503 say to come again in two seconds.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, code, status, param)
        self.headers = dict(headers or (_AGAIN if status in (429, 503) else {}))


def error_body(message: str, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object, so that its clients show the message."""
    kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def build_http(
    title: str,
    ready: Callable[[], list[str]],
    max_body_bytes: int,
    notes: Callable[[], list[str]] = list,
    larger: Mapping[str, int] | None = None,
) -> FastAPI:
    """An application with the common parts.

    `ready` returns what is missing; empty means ready. `notes` returns what is worth saying but stops nothing.
    `larger`: paths with a limit of their own, in bytes.
    """
    app = FastAPI(title=title, docs_url="/docs", redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes, larger=larger)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:
        missing = ready()
        answer = {"ready": not missing, "missing": missing, "notes": notes()}
        return JSONResponse(answer, status_code=503 if missing else 200)

    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(HttpError)
    async def _known(_: Request, error: HttpError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    @app.exception_handler(ClientDisconnect)
    async def _left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # Nobody reads it; it is what the request is counted under.

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return JSONResponse(error_body(message, "invalid_request", 422, where or None), status_code=422)

    @app.exception_handler(InvalidMessage)
    async def _invalid_message(_: Request, error: InvalidMessage) -> JSONResponse:
        return JSONResponse(error_body(f"{error.reason}. {error.way_out}".strip(), "invalid_request", 422), 422)

    @app.exception_handler(DependencyUnavailable)
    async def _away(_: Request, error: DependencyUnavailable) -> JSONResponse:
        body = error_body(f"{error.reason}. {error.way_out}".strip(), "unavailable", 503)
        return JSONResponse(body, status_code=503, headers=_AGAIN)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail), "http_error", error.status_code), error.status_code)


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, usable by pages of these origins; without any, the very same application.

    Never with cookies: who may do what is said by the key, which the page must send itself. Questions that browsers
    ask first (OPTIONS) are answered here, without a key.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=["*"]
    )


class BodyLimit:
    """Refuses a body over the limit, by its declared length or by what really arrives, with 413."""

    def __init__(self, app: ASGIApp, max_bytes: int, larger: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._max = max_bytes
        self._larger = larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        most = self._larger.get(scope["path"], self._max)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            body = error_body(_over(most), "body_too_large", 413)
            return await JSONResponse(body, status_code=413)(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise HttpError(413, _over(most), "body_too_large")
            return message

        await self._app(scope, counted, send)


def _over(most: int) -> str:
    return f"the request body is over the limit of {most} bytes"
