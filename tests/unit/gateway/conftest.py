"""A gateway whose neighbours are stand-ins: what it was asked and what it kept can be looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest
import uvicorn
from fastapi import FastAPI

from schemas.base import Event
from schemas.predictions import RequestObserved
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.gateway.clients import NotServed, UpstreamFailed
from services.gateway.domain import PredictionIds, TaskFlags
from services.gateway.handlers import Handlers
from services.gateway.http import build_app
from services.gateway.metrics import Metrics
from shared.spool import SpoolFull
from shared.tables import LatestByKey

SUPPORT = TaskSpec(
    name="support", kind=TaskKind.CLASSIFICATION, base_model="small", system_prompt="Name the intent.",
    labels=("refund", "card_lost"), max_answer_tokens=12,
)  # fmt: skip
HAIKU = TaskSpec(name="haiku", kind=TaskKind.GENERATION, base_model="small", system_prompt="Write a haiku.")


def chat_completion(text: str, logprobs: list[float]) -> dict[str, Any]:
    """What vLLM answers."""
    tokens = [{"token": "t", "logprob": value, "bytes": None, "top_logprobs": []} for value in logprobs]
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_790_000_000, "model": "small",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop",
            "logprobs": {"content": tokens},
        }],
        "usage": {"prompt_tokens": 20, "completion_tokens": len(tokens), "total_tokens": 20 + len(tokens)},
    }  # fmt: skip


@dataclass
class FakeUpstream:
    asked: list[dict[str, Any]] = field(default_factory=list)
    not_served: set[str] = field(default_factory=set)
    failure: UpstreamFailed | None = None
    answer: Any = field(default_factory=lambda: chat_completion("refund", [-0.1, -0.2]))

    def says(self, text: str, logprobs: list[float]) -> None:
        self.answer = chat_completion(text, logprobs)

    async def complete(self, body: bytes) -> Any:
        request = orjson.loads(body)
        self.asked.append(request)
        if request["model"] in self.not_served:
            raise NotServed(404, "no such model", "not_served")
        if self.failure is not None:
            raise self.failure
        return self.answer


@dataclass
class FakeFlags:
    flags: TaskFlags = field(default_factory=TaskFlags)

    def of(self, task: str, user: str | None) -> TaskFlags:
        return self.flags


@dataclass
class FakeLog:
    """Keeps what it is given; what was observed of requests is told apart from the rest."""

    kept: list[tuple[Event, ...]] = field(default_factory=list)
    full: bool = False

    async def append(self, *events: Event) -> None:
        if self.full:
            raise SpoolFull("the spool is full", "make room")
        self.kept.append(events)

    @property
    def events(self) -> list[Any]:
        return [event for events in self.kept for event in events if not isinstance(event, RequestObserved)]

    @property
    def observed(self) -> list[RequestObserved]:
        return [event for events in self.kept for event in events if isinstance(event, RequestObserved)]


@dataclass
class Gateway:
    http: httpx.AsyncClient
    upstream: FakeUpstream
    flags: FakeFlags
    log: FakeLog
    ids: PredictionIds
    app: FastAPI
    metrics: Metrics

    async def ask(self, text: str = "I want my money back", **more: Any) -> httpx.Response:
        body = {"model": "support", "messages": [{"role": "user", "content": text}], **more}
        return await self.http.post("/v1/chat/completions", json=body)


@asynccontextmanager
async def serving(
    answer_when_full: bool = False, specs: Sequence[TaskSpec] = (SUPPORT, HAIKU)
) -> AsyncIterator[Gateway]:
    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    for spec in specs:
        await tasks.put(spec.name, TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))
    upstream, flags, log, metrics = FakeUpstream(), FakeFlags(), FakeLog(), Metrics()
    ids = PredictionIds(b"k" * 32)
    handlers = Handlers(tasks, flags, upstream, log, ids, b"s" * 32, metrics, answer_when_full)
    app = build_app(handlers, metrics, list, list, 4_096)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        yield Gateway(http, upstream, flags, log, ids, app, metrics)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with serving() as one:
        yield one


@pytest.fixture
async def answering() -> AsyncIterator[Gateway]:
    """A gateway that answers even if it cannot keep the answer."""
    async with serving(answer_when_full=True) as one:
        yield one


@pytest.fixture
async def address(gateway: Gateway) -> AsyncIterator[str]:
    """The same gateway on a real socket, for clients that bring their own HTTP."""
    server = uvicorn.Server(uvicorn.Config(gateway.app, port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    await serving
