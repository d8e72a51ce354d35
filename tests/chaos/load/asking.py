"""Sends a request to a gateway, and says how it ended."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
import orjson

from tests.chaos.ledger import ACCEPTED, REFUSED, UNKNOWN

_TIMEOUT = aiohttp.ClientTimeout(total=30.0, connect=3.0)
_AFTER_REFUSAL_SECONDS = 0.2
_CONTENT = re.compile(rb'"content":"[^"]')
_ENDS = (b"data: [DONE]", b'data: {"type":"message_stop"}')
"""The last event of a stream, of OpenAI's APIs and of Anthropic's."""


class Ended(NamedTuple):
    """How a request ended. `ids`: of its answers, in order, if it was accepted."""

    outcome: str
    ids: Sequence[str] = ()
    body: Mapping[str, Any] = {}


class Asker:
    """A client of all gateways. `answers`: how many of each status, by path. `in_flight`: requests by user."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._http: aiohttp.ClientSession | None = None
        self.answers: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()

    async def __aenter__(self) -> Asker:
        self._http = aiohttp.ClientSession(timeout=_TIMEOUT, json_serialize=lambda value: orjson.dumps(value).decode())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def ask(
        self, gateway: int, path: str, body: object, users: Iterable[str | None], *, leaves: bool = False
    ) -> Ended:
        """Send a request to a gateway, modulo their number. `leaves`: disconnect in the middle of a stream."""
        assert self._http is not None
        named = [user for user in users if user]
        self.in_flight.update(named)
        try:
            async with self._http.post(self._urls[gateway % len(self._urls)] + path, json=body) as response:
                self.answers[f"{path} {response.status}"] += 1
                if response.status != 200 or response.headers.get("x-ratchet-logged") == "false":
                    await asyncio.sleep(_AFTER_REFUSAL_SECONDS)
                    return Ended(REFUSED)
                if response.content_type == "text/event-stream":
                    return await self._read_stream(response, path, leaves=leaves)
                answer = orjson.loads(await response.read())
                ids = answer.get("prediction_ids") if isinstance(body, list) else _ids(response)
                return Ended(ACCEPTED, ids or (), answer)
        except aiohttp.ClientConnectorError:
            self.answers[f"{path} no connection"] += 1
            await asyncio.sleep(_AFTER_REFUSAL_SECONDS)
            return Ended(REFUSED)
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            self.answers[f"{path} broke: {type(error).__name__}"] += 1
            return Ended(UNKNOWN)
        finally:
            self.in_flight.subtract(named)

    async def _read_stream(self, response: aiohttp.ClientResponse, path: str, *, leaves: bool) -> Ended:
        """Read to the end of the stream, or leave after the first text. A stream without its end may be stored."""
        received = b""
        async for piece in response.content.iter_any():
            received += piece
            if leaves and _CONTENT.search(received):
                self.answers[f"{path} stream left"] += 1
                response.close()
                return Ended(UNKNOWN)
        if received.rstrip().endswith(_ENDS):
            return Ended(ACCEPTED, _ids(response))
        self.answers[f"{path} stream broke"] += 1
        return Ended(UNKNOWN)


def _ids(response: aiohttp.ClientResponse) -> list[str]:
    """The ids of the answers, as the headers have them."""
    several = response.headers.get("x-ratchet-prediction-ids")
    single = response.headers.get("x-ratchet-prediction-id")
    return several.split(",") if several else [single] if single else []
