"""Streams an answer: passes the upstream's pieces on as they arrive, and the last ones once the events are durable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson

from schemas.conversation import FinishReason
from services.gateway.answering.failures import cut_of
from services.gateway.asgi.exchange import Exchange
from services.gateway.formats.api import StreamFailed, StreamRelay
from services.gateway.formats.chunks import ServerSentEventParser
from services.gateway.recording.recorder import Recorder
from services.gateway.recording.request import InFlightRequest
from services.gateway.routing.arms import Arm
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.http import error_body
from shared.spool import SpoolUnavailable

_EVENT_END = b"\n\n"


class StreamAnswerer:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def answer(
        self,
        request: InFlightRequest,
        arm: Arm,
        relay: StreamRelay,
        stream: AbstractAsyncContextManager[AsyncIterator[bytes]],
    ) -> None:
        """Stream an answer to the client. Raises UpstreamFailed before the stream has started. After that nothing but
        its cancellation is raised: an error becomes the client's last event."""
        async with stream as pieces:
            await self._relay(request, arm, relay, pieces)

    async def _relay(
        self, request: InFlightRequest, arm: Arm, relay: StreamRelay, pieces: AsyncIterator[bytes]
    ) -> None:
        exchange = request.exchange
        recording = False
        try:
            await exchange.start_stream(request.attribution_headers(arm))
            ending = await _forward(relay, pieces, exchange)
            answer = relay.answer_so_far()
            confidences = self._recorder.measure_confidence(request, arm, answer)
            recording = True  # From here on, a client that disconnects does not change what is recorded.
            logged = await self._recorder.record_answer(request, arm, answer, confidences)
            ending += relay.final_events(request.attribution(arm, answer.choices, confidences, logged))
            await exchange.write(ending, last=True)
        except asyncio.CancelledError:
            if not recording:
                await self._record_cut(request, arm, relay, *cut_of(exchange))
            raise
        except StreamFailed as error:
            await self._fail(request, arm, relay, *_upstream_error(error.raw))
        except UpstreamFailed as error:
            body = error_body(error.message, f"upstream_{error.reason}", error.status)
            await self._fail(request, arm, relay, error.status, body)
        except SpoolUnavailable as error:
            body = error_body(f"{error.reason}. {error.way_out}".strip(), "unavailable", 503)
            await exchange.end_with_error(503, body)
        except ValueError as error:
            message = f"the model server's stream is broken: {error}"
            await self._fail(request, arm, relay, 502, error_body(message, "upstream_garbled", 502))

    async def _fail(
        self, request: InFlightRequest, arm: Arm, relay: StreamRelay, status: int, body: dict[str, Any]
    ) -> None:
        if not request.exchange.ended:
            await self._record_cut(request, arm, relay, status, FinishReason.UPSTREAM_CUT)
            await request.exchange.end_with_error(status, body)

    async def _record_cut(
        self, request: InFlightRequest, arm: Arm, relay: StreamRelay, status: int, cut_by: FinishReason
    ) -> None:
        """Record as much of the answer as had arrived when it was cut."""
        answer = relay.answer_so_far()
        confidences = self._recorder.measure_confidence(request, arm, answer)
        with contextlib.suppress(SpoolUnavailable):
            await self._recorder.record_answer(request, arm, answer, confidences, status=status, cut_by=cut_by)


async def _forward(relay: StreamRelay, pieces: AsyncIterator[bytes], exchange: Exchange) -> bytes:
    """Pass pieces on until the answer is complete. Raises as `StreamRelay.feed` and the pieces do; what came
    before an error is written first.

    Returns what the last piece brought, to be written together with the final events: a write costs a system call.
    """
    events = ServerSentEventParser()
    async for piece in pieces:
        forwarded = await _feed(relay, events, piece, exchange)
        if relay.complete:
            return forwarded
        if forwarded:
            await exchange.write(forwarded)
    try:
        forwarded = await _feed(relay, events, _EVENT_END, exchange)  # Some servers leave it out at the end.
    except ValueError as error:
        raise _cut() from error
    if relay.complete or relay.may_end:
        return forwarded
    raise _cut()


async def _feed(relay: StreamRelay, events: ServerSentEventParser, piece: bytes, exchange: Exchange) -> bytes:
    """Return what the client gets of a piece. Before an error is raised, what came before it is written."""
    produced: list[bytes] = []
    try:
        for data in events.feed(piece):
            produced.append(relay.feed(data))
    except (StreamFailed, ValueError):
        if written := b"".join(produced):
            await exchange.write(written)
        raise
    return b"".join(produced)


def _cut() -> UpstreamFailed:
    return UpstreamFailed(502, "the model server's stream ended before the answer did", "cut")


def _upstream_error(raw: bytes) -> tuple[int, dict[str, Any]]:
    """The status and body, in OpenAI's format, of an error event of the upstream."""
    error = orjson.loads(raw)["error"]
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return 502, error_body(str(error)[:1_000], "upstream_failed", 502)
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code <= 599 else 502, {"error": error}
