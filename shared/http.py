"""What every HTTP service has: a body limit, errors in OpenAI's shape, /healthz, /readyz that tells the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import DependencyUnavailable, InvalidMessage


class HttpError(Exception):
    """An answer that is an error: status, what went wrong, and a code that a program can test."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, code, status, param)


def error_body(message: str, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object, so that its clients show the message."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def build_http(
    title: str,
    ready: Callable[[], list[str]],
    max_body_bytes: int,
    notes: Callable[[], list[str]] = list,
) -> FastAPI:
    """An application with the common parts.

    `ready` returns what is missing; empty means ready. `notes` returns what is worth saying but stops nothing.
    """
    app = FastAPI(title=title, docs_url="/docs", redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)

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
        headers = {"retry-after": "2"} if error.status in (429, 503) else None
        return JSONResponse(error.body, status_code=error.status, headers=headers)

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
        return JSONResponse(body, status_code=503, headers={"retry-after": "2"})

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail), "http_error", error.status_code), error.status_code)


class BodyLimit:
    """Refuses a body over the limit, by its declared length or by what really arrives, with 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max:
            return await self._refuse(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max:
                raise HttpError(413, self._message(), "body_too_large")
            return message

        await self._app(scope, counted, send)

    def _message(self) -> str:
        return f"the request body is over the limit of {self._max} bytes"

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = JSONResponse(error_body(self._message(), "body_too_large", 413), status_code=413)
        await response(scope, receive, send)
