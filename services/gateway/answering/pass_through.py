"""Requests whose model is no task: passed on to another API as they are, for the keys that may, and answered as it
answers. Nothing of their text is recorded, only that there was a request.

produces  requests.observed, all of one reserved task
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

from schemas.base import Variant
from schemas.conversation import FinishReason
from schemas.predictions import RequestObserved
from schemas.tasks import NO_TASK
from services.gateway.answering.failures import cut_of
from services.gateway.asgi.exchange import Exchange, Headers, Reply
from services.gateway.auth.grants import Grant
from services.gateway.domain import PredictionIds
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.event_log import SpoolEventLog, encode_event
from services.gateway.routing.passed_models import PassedModels
from services.gateway.tasks.served import ServedTasks
from services.gateway.upstreams.outside import OutsideApi
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.http import HttpError
from shared.identity import event_id
from shared.spool import SpoolUnavailable

_FORWARDED = frozenset((b"openai-beta", b"anthropic-version", b"anthropic-beta"))
"""The client's headers that go on: they choose the shape of the API. Authorization and cookies never do."""
_HEADER_VALUE = re.compile(rb"[!-~][ -~]{0,499}")
_JSON, _TEXT = b"application/json", b"text/plain; charset=utf-8"


class PassThrough:
    """`api` answers for `models`. A task of the same name wins."""

    def __init__(
        self,
        api: OutsideApi,
        models: PassedModels,
        tasks: ServedTasks,
        ids: PredictionIds,
        log: SpoolEventLog,
        metrics: Metrics,
    ) -> None:
        self._api = api
        self._models = models
        self._tasks = tasks
        self._new_id = ids.new
        self._log = log
        self._dropped = metrics.observations_dropped
        self._answered = metrics.answers.labels(NO_TASK, Variant.EXTERNAL)
        self.close = api.close

    def takes(self, grant: Grant, model: str) -> bool:
        """Return True for a model that passes through for this key.

        None does before the tasks are known: a task's prompts must not leave because the gateway has just started.
        """
        return grant.pass_through and model in self._models and self._tasks.has_others_than(model)

    async def answer(self, exchange: Exchange, path: str, data: dict[str, Any]) -> Reply | None:
        """Pass a request on; `data` is its decoded body. Raises HttpError."""
        status = 500
        cut_by: FinishReason | None = None
        reply: Reply | None = None
        lines = exchange.upstream_headers + b"".join(_forwarded_lines(exchange.headers))
        try:
            if data.get("stream") is True:
                await self._stream(exchange, path, lines)
            else:
                response = await self._api.request(path, exchange.body, lines)
                reply = Reply(200, [(b"content-type", _content_type(response.headers))], response.body)
            status = 200
        except UpstreamFailed as error:
            status = error.status
            reply = await _failed(exchange, error)
        except asyncio.CancelledError:
            status, cut_by = cut_of(exchange)
            raise
        finally:
            await self._observe(exchange, status, cut_by)
        if reply is None:  # The end of a stream, which tells the client that its request is recorded.
            await exchange.write(b"", last=True)
        return reply

    async def _stream(self, exchange: Exchange, path: str, lines: bytes) -> None:
        """Pass on all of a stream but its end."""
        async with self._api.stream(path, exchange.body, lines) as stream:
            await exchange.start_stream((), [(b"content-type", _content_type(stream.headers))])
            async for piece in stream:
                await exchange.write(piece)

    async def _observe(self, exchange: Exchange, status: int, cut_by: FinishReason | None = None) -> None:
        """Record the request, before the end of its answer leaves. Never raises."""
        prediction_id = self._new_id(NO_TASK, exchange.request_id)
        event = RequestObserved(
            event_id=event_id("requests.observed", prediction_id),
            task=NO_TASK,
            task_revision=NO_TASK,
            prediction_id=prediction_id,
            variant=Variant.EXTERNAL,
            status=status,
            gateway_stopped=cut_by is FinishReason.GATEWAY_STOPPED,
            latency_ms=exchange.seconds * 1000.0,
        )
        if status == 200:
            self._answered.inc()
        try:
            await self._log.append([encode_event(event, exchange.trace)])
        except SpoolUnavailable:
            self._dropped.inc()


async def _failed(exchange: Exchange, error: UpstreamFailed) -> Reply:
    """The reply for a request that failed: the API's own, where it gave one. Raises HttpError without one, and within
    a stream, which it ends."""
    retry = f"{error.retry_after:.0f}" if error.retry_after is not None else None
    if exchange.stream_started:
        await exchange.write(b"\n\n")  # The stream may have been cut within an event.
    elif error.raw:
        kind = _JSON if error.raw.lstrip()[:1] in (b"{", b"[") else _TEXT
        headers: Headers = [(b"content-type", kind)]
        if retry is not None:
            headers.append((b"retry-after", retry.encode()))
        return Reply(error.status, headers, error.raw)
    raise HttpError(
        error.status, error.message, f"upstream_{error.reason}", headers={"retry-after": retry} if retry else None
    )


def _forwarded_lines(headers: Headers) -> Iterable[bytes]:
    return [
        b"%b: %b\r\n" % (name, value) for name, value in headers
        if name in _FORWARDED and _HEADER_VALUE.fullmatch(value)
    ]  # fmt: skip


def _content_type(headers: Any) -> bytes:
    value: bytes = headers.get(b"content-type", b"")
    return value if _HEADER_VALUE.fullmatch(value) else _JSON
