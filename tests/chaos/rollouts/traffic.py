"""The tasks' users: every request is another user's, but for a few who come often; every second one is streamed."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping

import httpx

_OFTEN, _OFTEN_SHARE = 20, 0.1
_PAUSE = 0.3


def message_of(number: int, chance: random.Random) -> str:
    """Return what a user writes: no two messages are alike."""
    return f"message {number}: {chance.getrandbits(64):x}"


class Traffic:
    """Sends requests of each task until it is cancelled. `rates`: how many a second. `answers`: how they ended."""

    def __init__(self, url: str, rates: Mapping[str, float], seed: int) -> None:
        self._url = url
        self._rates = rates
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self.answers: Counter[str] = Counter()

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=400)
        async with httpx.AsyncClient(timeout=30.0, limits=limits) as http, asyncio.TaskGroup() as group:
            for task in self._rates:
                group.create_task(self._send(http, task))

    async def _send(self, http: httpx.AsyncClient, task: str) -> None:
        """Send at the task's rate, however long an answer takes."""
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(self._random.expovariate(self._rates[task]))
                if len(running) < 20:
                    request = asyncio.create_task(self._ask(http, task, next(self._numbers)))
                    running.add(request)
                    request.add_done_callback(running.discard)
        finally:
            for request in list(running):
                request.cancel()

    async def _ask(self, http: httpx.AsyncClient, task: str, number: int) -> None:
        often = self._random.random() < _OFTEN_SHARE
        user = f"often-{self._random.randrange(_OFTEN)}" if often else f"user-{number}"
        text = message_of(number, self._random)
        body = {
            "model": task, "user": user, "messages": [{"role": "user", "content": text}], "stream": number % 2 == 0,
            "temperature": 2.0,
        }  # fmt: skip
        try:
            response = await http.post(f"{self._url}/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
            await asyncio.sleep(_PAUSE)
            return
        broken = b'"error"' in response.content
        self.answers[f"{response.status_code}{', broken' if broken and response.is_success else ''}"] += 1
