"""Applications that ask the gateway all along, each request as a user of its own, every second one streamed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from tests.e2e.rollouts.engine import text_of
from tests.waiting import PATIENCE_SECONDS

_DONE = b"data: [DONE]"


@dataclass(frozen=True)
class Asked:
    """One request and what came of it. Times are of the clock, in seconds; `error`: why it has no whole answer."""

    user: str
    began: float
    ended: float
    variant: str
    adapter: str
    error: str = ""

    def is_of(self, adapter: str) -> bool:
        return (self.variant, self.adapter) == ("canary", adapter)


@dataclass
class Load:
    """The requests of one task. `paces`: seconds between two requests of each of so many applications."""

    http: aiohttp.ClientSession
    url: str
    task: str
    labels: Sequence[str]
    paces: Sequence[float] = (0.05,) * 12
    asked: list[Asked] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def run_forever(self) -> None:
        await asyncio.gather(*(self._ask_forever(pace) for pace in self.paces))

    async def _ask_forever(self, pace: float) -> None:
        while True:
            number = next(self.numbers)
            self.asked.append(await self.ask(f"user-{number}", number, stream=number % 2 == 0))
            await asyncio.sleep(pace)

    async def ask(self, user: str, number: int, *, stream: bool) -> Asked:
        text, began = text_of(number, self.labels), time.monotonic()
        body = {"model": self.task, "messages": [{"role": "user", "content": text}], "user": user, "stream": stream}
        variant = adapter = ""
        try:
            async with self.http.post(f"{self.url}/v1/chat/completions", json=body) as response:
                variant = response.headers.get("x-ratchet-variant", "")
                adapter = response.headers.get("x-ratchet-adapter", "")
                error = _error_of(response.status, await response.read(), stream=stream)
        except (aiohttp.ClientError, TimeoutError) as failure:
            error = repr(failure)
        return Asked(user, began, time.monotonic(), variant, adapter, error)

    def dropped(self, broken_by: str = "") -> list[Asked]:
        """Return the requests without a whole answer. `broken_by`: a canary that breaks its own answers."""
        return [asked for asked in self.asked if asked.error and not (broken_by and asked.is_of(broken_by))]

    async def user_of(self, adapter: str) -> str:
        """Wait for a user whom this canary serves, and return them: the canary is sticky."""
        while True:
            for asked in reversed(self.asked):
                if asked.is_of(adapter):
                    return asked.user
            await asyncio.sleep(0.02)


def _error_of(status: int, body: bytes, *, stream: bool) -> str:
    """Return why this is no whole answer, "" if it is one."""
    if status != 200:
        return f"{status}: {body[:200]!r}"
    if stream:
        return "" if _DONE in body and b'"error"' not in body else f"broken stream: {body[-200:]!r}"
    answer: Any = orjson.loads(body)
    return "" if answer["choices"][0]["message"]["content"] else "an empty answer"


@asynccontextmanager
async def load_on(
    url: str, task: str, labels: Sequence[str], paces: Sequence[float] = (0.05,) * 12
) -> AsyncIterator[Load]:
    """Send requests for the length of a `with`; what is under way at its end is not counted."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        load = Load(http, url, task, labels, paces)
        running = asyncio.create_task(load.run_forever())
        try:
            yield load
        finally:
            running.cancel()  # Does nothing to one that has failed.
            with contextlib.suppress(asyncio.CancelledError):
                await running
