"""Streams: the upstream's pieces go on as they come; the last ones when the event is in the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson

from services.gateway.asgi.exchange import CLIENT_LEFT, Exchange, error_event
from services.gateway.formats.api import StreamFailed, StreamRelay
from services.gateway.formats.chunks import ServerSentEventParser
from services.gateway.recording.recorder import InFlightRequest, Recorder, headers_of, ratchet_of
from services.gateway.routing.arms import Arm
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.http import error_body
from shared.spool import SpoolFull

CANCELLED = "cancelled"
"""The finish reason of an answer whose client did not wait for its end."""


class StreamAnswerer:
    def __init__(self, keeping: Recorder) -> None:
        self._keeping = keeping

    async def answer(
        self,
        one: InFlightRequest,
        arm: Arm,
        relay: StreamRelay,
        stream: AbstractAsyncContextManager[AsyncIterator[bytes]],
    ) -> None:
        """Stream an answer to its client. Raises UpstreamFailed if none has begun; once it has, nothing but the
        cancellation: what goes wrong is the client's last event."""
        async with stream as pieces:
            await self._relayed(one, arm, relay, pieces)

    async def _relayed(self, one: InFlightRequest, arm: Arm, relay: StreamRelay, pieces: AsyncIterator[bytes]) -> None:
        call = one.call
        kept = False
        try:
            await call.begin(headers_of(one, arm))
            await _forward(relay, pieces, call)
            outcome = relay.answer_so_far()
            measures = self._keeping.measured(one, arm, outcome)
            kept = True  # From here on, a client that leaves changes nothing of what is kept.
            logged = await self._keeping.answered(one, arm, outcome, measures)
            await call.write(relay.final_events(ratchet_of(one, arm, measures, logged)), last=True)
            async for _ in pieces:  # To the end, so that the connection can be used again.
                pass
        except asyncio.CancelledError:
            if not kept:
                await self._cancelled(one, arm, relay)
            raise
        except StreamFailed as error:
            await self._failed(one, arm, *_told(error.raw))
        except UpstreamFailed as error:
            body = error_body(error.message, f"upstream_{error.reason}", error.status)
            await self._failed(one, arm, error.status, body)
        except SpoolFull as error:
            body = error_body(f"{error.reason}. {error.way_out}".strip(), "unavailable", 503)
            await call.write(error_event(body), last=True)
        except ValueError as error:
            said = f"the model server's stream is broken: {error}"
            await self._failed(one, arm, 502, error_body(said, "upstream_garbled", 502))

    async def _failed(self, one: InFlightRequest, arm: Arm, status: int, body: dict[str, Any]) -> None:
        if not one.call.ended:
            await self._keeping.observed(one, arm, status)
            await one.call.write(error_event(body), last=True)

    async def _cancelled(self, one: InFlightRequest, arm: Arm, relay: StreamRelay) -> None:
        """Keep as much of the answer as had come when its client left."""
        outcome = relay.answer_so_far()
        measures = self._keeping.measured(one, arm, outcome)
        with contextlib.suppress(SpoolFull):
            await self._keeping.answered(one, arm, outcome, measures, status=CLIENT_LEFT, cut=CANCELLED)


async def _forward(relay: StreamRelay, pieces: AsyncIterator[bytes], call: Exchange) -> None:
    """Pass the pieces on until the answer is whole. Raises as `StreamRelay.feed` and the pieces do."""
    events = ServerSentEventParser()
    async for piece in pieces:
        if now := b"".join([relay.feed(data) for data in events.feed(piece)]):
            await call.write(now)
        if relay.complete:
            return
    if not relay.complete:
        raise UpstreamFailed(502, "the model server's stream ended before the answer did", "cut")


def _told(raw: bytes) -> tuple[int, dict[str, Any]]:
    """The upstream's own words, in OpenAI's shape, and the status they stand for."""
    error = orjson.loads(raw)["error"]
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return 502, error_body(str(error)[:1_000], "upstream_failed", 502)
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code <= 599 else 502, {"error": error}
