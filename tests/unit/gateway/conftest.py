"""A gateway with fakes for the model servers, flags and event log, whose contents tests can look at."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
import uvicorn

from schemas.base import Event
from schemas.catalog import TOPICS
from schemas.predictions import PredictionLogged, RequestObserved
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.gateway.answering.answer import Answerer, AnswerSources
from services.gateway.answering.pass_through import PassThrough
from services.gateway.asgi.admission import RequestAdmission
from services.gateway.asgi.app import AsgiApp
from services.gateway.asgi.in_flight import BytesInFlight
from services.gateway.asgi.large_work import LargeWork
from services.gateway.asgi.protocol import HttpProtocol
from services.gateway.auth.grants import AccessControl
from services.gateway.domain import Identifiers, PredictionIds
from services.gateway.formats.media import InlineMedia, MediaReferences
from services.gateway.handlers import Handlers
from services.gateway.http import build_app
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.external import ExternalPredictions
from services.gateway.recording.media_folder import MediaFolder
from services.gateway.recording.recorder import Recorder, RecordingOptions
from services.gateway.routing.arms import ServingFlags
from services.gateway.routing.passed_models import NO_MODELS, PassedModels
from services.gateway.settings import BodyLimits, UpstreamLimits
from services.gateway.tasks.served import ServedTasks
from services.gateway.upstreams.outside import OutsideApi
from services.gateway.upstreams.upstream import ModelNotServed, Upstream, UpstreamFailed
from shared.kafka.latest_by_key import LatestByKey
from shared.spool import Record, SpoolUnavailable
from tests.waiting import PATIENCE_SECONDS

SUPPORT = TaskSpec(
    name="support", kind=TaskKind.CLASSIFICATION, base_model="small", system_prompt="Name the intent.",
    labels=("refund", "card_lost"), max_answer_tokens=12,
)  # fmt: skip
SMALL_BODIES = BodyLimits(body=64 * 1024)
PATIENT_LIMITS = UpstreamLimits(connect=PATIENCE_SECONDS)
"""For upstreams that are there, on a machine that may be busy."""
HAIKU = TaskSpec(name="haiku", kind=TaskKind.GENERATION, base_model="small", system_prompt="Write a haiku.")
ORDERS = TaskSpec.model_validate({
    "name": "orders", "kind": "extraction", "base_model": "small", "system_prompt": "Extract the order.",
    "output_schema": {"type": "object", "properties": {
        "customer": {"type": "string"}, "status": {"enum": ["open", "Maria paid"]}, "phone": {"type": "integer"},
    }},
})  # fmt: skip
_MEDIA_BYTES = 2 * 1024**3
_EVENTS = {topic.name: topic.event for topic in TOPICS}
_COMMON = {"id": "chatcmpl-1", "created": 1_790_000_000, "model": "small"}


def logprobs_of(values: Sequence[float]) -> dict[str, Any]:
    return {"content": [{"token": "t", "logprob": value, "bytes": None, "top_logprobs": []} for value in values]}


def chat_completion(text: str, logprobs: list[float], **message: Any) -> dict[str, Any]:
    """What vLLM answers."""
    return {
        **_COMMON, "object": "chat.completion",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop",
            "logprobs": logprobs_of(logprobs),
        }],
        "usage": {"prompt_tokens": 20, "completion_tokens": len(logprobs), "total_tokens": 20 + len(logprobs)},
    }  # fmt: skip


def sse(*chunks: Any) -> list[bytes]:
    """Events as vLLM sends them, the end included."""
    return [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


def chunk(delta: dict[str, Any], index: int = 0, finish: str | None = None, logprob: float | None = -0.1) -> Any:
    choice = {
        "index": index, "delta": delta, "finish_reason": finish,
        "logprobs": logprobs_of([logprob]) if logprob is not None else None,
    }  # fmt: skip
    return {**_COMMON, "object": "chat.completion.chunk", "choices": [choice]}


USAGE = {
    **_COMMON, "object": "chat.completion.chunk", "choices": [],
    "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22},
}  # fmt: skip
REFUND = sse(
    chunk({"role": "assistant", "content": ""}, logprob=None), chunk({"content": "ref"}), chunk({"content": "und"}),
    chunk({"content": ""}, finish="stop", logprob=None), USAGE,
)  # fmt: skip


@contextmanager
def no_free_files() -> Iterator[None]:
    """This process cannot open another file or socket for the length of a `with`, whatever others close meanwhile."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@dataclass
class FakeUpstream:
    """`pieces` are a stream's; an exception among them is raised, an event is waited for."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    not_served: set[str] = field(default_factory=set)
    failure: UpstreamFailed | None = None
    answer: Any = field(default_factory=lambda: chat_completion("refund", [-0.1, -0.2]))
    pieces: list[bytes | Exception | asyncio.Event] = field(default_factory=lambda: list(REFUND))
    waits_for: asyncio.Event | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def says(self, text: str, logprobs: list[float]) -> None:
        self.answer = chat_completion(text, logprobs)

    async def post(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> bytes:
        self._note(path, body, lines, model)
        try:
            if self.waits_for is not None:
                await self.waits_for.wait()
        except asyncio.CancelledError:
            self.closed.set()
            raise
        return self.answer if isinstance(self.answer, bytes) else orjson.dumps(self.answer)

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, lines: bytes = b"", model: str = ""
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self._note(path, body, lines, model)
        try:
            yield self._pieces()
        finally:
            self.closed.set()

    async def _pieces(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            else:
                yield piece

    def _note(self, path: str, body: bytes, lines: bytes, model: str) -> None:
        request = orjson.loads(body)
        assert model in ("", request["model"]), "the replica is chosen by another model than it is asked for"
        self.models.append(model)
        self.lines.append(lines)
        self.asked.append(request)
        self.paths.append(path)
        if request["model"] in self.not_served:
            raise ModelNotServed(404, "no such model", "not_served", another_may_answer=True)
        if self.failure is not None:
            raise self.failure


@dataclass
class FakeFlags:
    flags: ServingFlags = field(default_factory=ServingFlags)
    users: list[str | None] = field(default_factory=list)
    subjects: list[str | None] = field(default_factory=list)

    def read(self, task: str, user: str | None, subject: str | None = None) -> ServingFlags:
        self.users.append(user)
        self.subjects.append(subject)
        return self.flags


@dataclass
class FakeLog:
    """An event log in memory: the events of each append, which can be refused as by a full spool."""

    appends: list[tuple[Event, ...]] = field(default_factory=list)
    full: bool = False
    cancels: bool = False
    """Whether each request is cancelled, as by its client that leaves, while its record waits to be written."""
    media: MediaFolder | None = None

    async def append(self, records: Sequence[Record], media: Collection[InlineMedia] | None = None) -> None:
        if self.full:
            raise SpoolUnavailable("the spool is full", "make room")
        if media is not None and self.media is not None:
            await self.media.write(media)
        self.appends.append(tuple(_EVENTS[record.topic].model_validate_json(record.value) for record in records))
        if self.cancels and (task := asyncio.current_task()) is not None:
            task.cancel()
        await asyncio.sleep(0)  # As the real one waits for the end of its turn when requests are many.

    @property
    def events(self) -> list[Any]:
        return [event for events in self.appends for event in events if not isinstance(event, RequestObserved)]

    @property
    def predictions(self) -> list[SimpleNamespace]:
        """The logged answers, each with what its event says of the whole request."""
        return [
            SimpleNamespace(
                **{**dict(event), **dict(event.usage), **dict(event.call), **dict(answer),
                   "answer": answer.plain, "answer_tokens": answer.tokens}
            )
            for event in self.events if isinstance(event, PredictionLogged) for answer in event.answers
        ]  # fmt: skip

    @property
    def observed(self) -> list[RequestObserved]:
        return [event for events in self.appends for event in events if isinstance(event, RequestObserved)]


@dataclass
class Gateway:
    http: httpx.AsyncClient
    upstream: FakeUpstream
    flags: FakeFlags
    log: FakeLog
    ids: PredictionIds
    app: AsgiApp
    metrics: Metrics
    missing: list[str]
    """What /readyz reports as missing."""
    in_flight: BytesInFlight
    media: Any = None
    """The folder of kept media."""

    async def ask(self, text: str = "I want my money back", **more: Any) -> httpx.Response:
        body = {"model": "support", "messages": [{"role": "user", "content": text}], **more}
        return await self.http.post("/v1/chat/completions", json=body)

    async def metric(self, name: str) -> float:
        """The value of one line of /metrics, labels included in the name."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


@asynccontextmanager
async def serving(
    answer_when_full: bool = False,
    specs: Sequence[TaskSpec] = (SUPPORT, HAIKU),
    access: Any = None,
    public_metrics: bool = False,
    replicas: Upstream | None = None,
    external: Upstream | None = None,
    limits: BodyLimits = SMALL_BODIES,
    home: Path | None = None,
    media: int = _MEDIA_BYTES,
    passing: tuple[OutsideApi, PassedModels] | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway that asks `replicas`, by default a fake, and then `external` for its model "large".

    With a `home`, media of tasks that keep them are in its folder `media`. `passing`: the API for models that are no
    task, and those models.
    """
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    for spec in specs:
        await table.put(spec.name, TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))
    upstream, flags, log, metrics = FakeUpstream(), FakeFlags(), FakeLog(), Metrics()
    tasks, identifiers = ServedTasks(table, metrics), Identifiers(PredictionIds(b"k" * 32), b"s" * 32)
    if access is None:
        access = AccessControl(Path("no-keys.json"), Path("no-had-keys"))
        await access.start()
    folder = MediaFolder(home / "media", home / "secrets", media) if home else None
    if folder:
        await folder.start()
        log.media = folder
    options = RecordingOptions(answer_when_full)
    recorder = Recorder(log, metrics, MediaReferences(b"m" * 32), options=options)
    sources = AnswerSources(replicas or upstream, external, "large" if external else None)
    pass_through = PassThrough(*passing, tasks, identifiers.predictions, log, metrics) if passing else None
    large_work = LargeWork()
    answerer = Answerer(tasks, flags, sources, recorder, identifiers, large_work, pass_through)
    passed = passing[1] if passing else NO_MODELS
    handlers, missing = (
        Handlers(tasks, log, ExternalPredictions(identifiers), access, large_work, public_metrics, passed),
        list[str](),
    )
    admission = RequestAdmission(access, limits)
    app = build_app(answerer, handlers, metrics, lambda: missing, list, admission)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        in_flight = admission.in_flight
        yield Gateway(http, upstream, flags, log, identifiers.predictions, app, metrics, missing, in_flight, folder)
    if folder:
        await folder.close()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with serving() as gateway:
        yield gateway


@pytest.fixture
async def answering_when_full() -> AsyncIterator[Gateway]:
    """A gateway that answers even if it cannot record the answer."""
    async with serving(answer_when_full=True) as gateway:
        yield gateway


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[str]:
    """The gateway on a real socket: its address, for clients that bring their own HTTP."""
    config = uvicorn.Config(gateway.app, port=0, http=HttpProtocol, log_level="error")  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    await serving


@pytest.fixture
async def address(gateway: Gateway) -> AsyncIterator[str]:
    async with listening(gateway) as address:
        yield address
