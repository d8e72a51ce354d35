"""The console's HTTP API: questions, corrections, skips, and the state of cycles. Errors say what is allowed."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.base import TaskName, Text
from schemas.labels import Preference, Purpose
from services.console.domain import AnsweredQuestion, ReviewAnswer, shown
from services.console.history import PostgresCycleHistory
from services.console.reviews import Reviews, UnknownError
from services.console.settings import ConsoleSettings
from shared.addresses import host_name, is_ip_address
from shared.http import PROBED_PATHS, HttpError, build_http, error_body

_MAX_BODY_BYTES = 1024 * 1024
"""Of an answer: what a reviewer writes, and what stands for personal data in it."""
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]


class Correction(BaseModel):
    """Body of `POST /api/corrections`."""

    model_config = ConfigDict(extra="forbid")

    request_id: Identifier
    reviewer: str = Field(description="The reviewer's name, the same every time.")
    label: Text | None = Field(default=None, description="What the answer should have been.")
    preference: Preference | None = Field(
        default=None, description="For pairs of free texts: which side is better. `cannot_tell`: of all tickets."
    )
    seconds: float | None = Field(default=None, ge=0.0, le=86_400.0)


class Skip(BaseModel):
    """Body of `POST /api/skips`."""

    model_config = ConfigDict(extra="forbid")

    request_id: Identifier
    reviewer: str


class NotFramed:
    """ASGI middleware: no other site shows the console in a frame, and has people press what they do not see."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-frame-options"] = "DENY"
            await send(message)

        await self._app(scope, receive, with_header)


class AllowedHosts:
    """ASGI middleware: answers for the names by which the console is reached, and refuses others with 400.

    A site whose name is made to point here once a browser has loaded its page (DNS rebinding) is, to the browser, the
    console itself. Only `Host` tells: it has that site's name. An IP address is no name, and cannot be made to point
    anywhere; probes ask for what no site gains by.
    """

    def __init__(self, app: ASGIApp, names: AbstractSet[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in PROBED_PATHS:
            return await self._app(scope, receive, send)
        host = Headers(scope=scope).get("host", "")
        name = host_name(host)
        if name in self._names or is_ip_address(name):
            return await self._app(scope, receive, send)
        reason = f"the console is not to be reached as {host[:200]!r}"
        way_out = "If it is, set RATCHET_CONSOLE_ALLOWED_HOSTS to all such names, comma-separated"
        body = error_body(f"{reason}. {way_out}", "host_not_allowed", 400)
        await JSONResponse(body, status_code=400)(scope, receive, send)


def build_app(settings: ConsoleSettings, reviews: Reviews, history: PostgresCycleHistory) -> FastAPI:
    """Build the API; `main` mounts the pages on it."""
    app = build_http("Ratchet console", list, _MAX_BODY_BYTES)
    app.add_middleware(AllowedHosts, names=settings.allowed_names)
    app.add_middleware(NotFramed)

    @app.exception_handler(UnknownError)
    async def _not_found(_: Request, error: UnknownError) -> JSONResponse:
        return JSONResponse(error_body(error.reason, "not_found", 404), status_code=404)

    _review_routes(app, reviews)

    @app.get("/api/cycles")
    async def cycles(task: TaskName | None = None) -> dict[str, Any]:
        return {"cycles": await history.cycles(task)}

    @app.get("/api/cycles/{cycle_id}")
    async def cycle(cycle_id: Identifier) -> dict[str, Any]:
        steps = await history.events(cycle_id)
        if not steps:
            raise HttpError(404, f"no cycle {cycle_id!r}", "unknown_cycle", "cycle_id")
        progress, losses = await history.progress(cycle_id), await history.losses(cycle_id)
        task = steps[0]["event"]["task"]
        return {"cycle_id": cycle_id, "task": task, "steps": steps, "progress": progress, "losses": losses}

    return app


def _review_routes(app: FastAPI, reviews: Reviews) -> None:
    @app.get("/api/queue")
    async def queue(
        task: TaskName, reviewer: str, limit: Annotated[int, Query(ge=1, le=500)] = 20, purpose: Purpose | None = None
    ) -> dict[str, Any]:
        return {"items": [shown(request) for request in await reviews.questions(task, reviewer, limit, purpose)]}

    @app.get("/api/queue/count")
    async def count(task: TaskName) -> dict[str, Any]:
        by_purpose = await reviews.count(task)
        return {"open": sum(by_purpose.values()), "by_purpose": by_purpose}

    @app.get("/api/reviewers")
    async def reviewers(task: TaskName) -> dict[str, Any]:
        return {"reviewers": [asdict(counts) for counts in await reviews.reviewers(task)]}

    @app.get("/api/answers")
    async def answers(
        task: TaskName,
        reviewer: str,
        limit: Annotated[int, Query(ge=1, le=500)] = 20,
        before: Annotated[AwareDatetime | None, Query(description="`answered_at` of the last one read.")] = None,
    ) -> dict[str, Any]:
        return {"items": [_answered(found) for found in await reviews.answers(task, reviewer, limit, before)]}

    @app.post("/api/skips")
    async def skip(body: Skip) -> dict[str, Any]:
        await reviews.skip(body.request_id, body.reviewer)
        return {"skipped": True}

    @app.post("/api/corrections")
    async def correct(body: Correction) -> dict[str, Any]:
        answer = ReviewAnswer(body.label, body.preference, body.seconds)
        receipt = await reviews.answer(body.request_id, body.reviewer, answer)
        return {"correction_id": receipt.correction_id, "counted": receipt.counted}


def _answered(found: AnsweredQuestion) -> dict[str, Any]:
    """`comparison_ended`: a changed answer no longer moves the candidate; it may still be a training label."""
    answer = {"label": found.given.answer.label, "preference": found.given.answer.preference}
    when = {"edits": found.given.edits, "answered_at": found.given.at, "comparison_ended": found.ended}
    return {**shown(found.request), "answer": answer, **when}
