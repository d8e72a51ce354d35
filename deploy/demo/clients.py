"""The gateway, the console and the scheduler, over HTTP: as an application, a person and an operator see them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from deploy.demo.data.csv_file import Row
from shared.errors import DependencyUnavailable, RatchetError

ATTEMPTS = 4
TIMEOUT = httpx.Timeout(120.0, connect=10.0)


@dataclass(frozen=True)
class Asked:
    """A question with the gateway's answer. Not `ok`: the request failed after all attempts."""

    row: Row
    user: str
    ok: bool
    text: str = ""
    prediction_id: str = ""
    variant: str = ""
    adapter: str = ""
    confidence: float | None = None
    latency_ms: float = 0.0
    error: str = ""

    @property
    def right(self) -> bool:
        return self.ok and self.text.strip() == self.row.label


class Gateway:
    """The OpenAI-compatible front door."""

    def __init__(self, http: httpx.AsyncClient, url: str, task: str) -> None:
        self._http = http
        self._url = url
        self._task = task

    async def tasks(self) -> set[str]:
        """The names of the tasks that the gateway serves; empty while it is not up."""
        try:
            answer = await self._http.get(f"{self._url}/v1/models", timeout=5.0)
            return {model["id"] for model in answer.json()["data"]} if answer.is_success else set()
        except httpx.HTTPError:
            return set()

    async def ask(self, row: Row, user: str) -> Asked:
        """One question. Errors of the server are tried again; what is left of them is in `Asked.error`."""
        body = {"model": self._task, "messages": [{"role": "user", "content": row.text}], "user": user}
        error = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(0.5 * 2**attempt)
            started = time.perf_counter()
            try:
                response = await self._http.post(f"{self._url}/v1/chat/completions", json=body)
            except httpx.HTTPError as failure:
                error = repr(failure)
                continue
            if response.is_success:
                return _asked(row, user, response, (time.perf_counter() - started) * 1000)
            error = f"{response.status_code}: {response.text[:300]}"
            if response.status_code < 500 and response.status_code != 429:
                break
        return Asked(row, user, ok=False, error=error)

    async def ask_all(
        self, rows: Iterable[Row], users: str, concurrency: int, on_answer: Callable[[Asked], None]
    ) -> list[Asked]:
        """Ask each row as a user of its own, `concurrency` at a time; answers in the rows' order."""
        gate = asyncio.Semaphore(concurrency)

        async def one(number: int, row: Row) -> Asked:
            async with gate:
                asked = await self.ask(row, f"{users}-{number}")
            on_answer(asked)
            return asked

        return list(await asyncio.gather(*(one(number, row) for number, row in enumerate(rows))))


def _asked(row: Row, user: str, response: httpx.Response, latency_ms: float) -> Asked:
    confidence = response.headers.get("x-ratchet-confidence", "")
    return Asked(
        row=row,
        user=user,
        ok=True,
        text=response.json()["choices"][0]["message"]["content"] or "",
        prediction_id=response.headers.get("x-ratchet-prediction-id", ""),
        variant=response.headers.get("x-ratchet-variant", ""),
        adapter=response.headers.get("x-ratchet-adapter", ""),
        confidence=_number(confidence),
        latency_ms=latency_ms,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class Console:
    """The API of the review console: the same that its own pages use."""

    def __init__(self, http: httpx.AsyncClient, url: str, task: str) -> None:
        self._http = http
        self._url = url
        self._task = task

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]:
        """Questions that `reviewer` has not answered yet, most urgent first; none while the task is unknown."""
        params: dict[str, Any] = {"task": self._task, "reviewer": reviewer, "limit": limit}
        if purpose:
            params["purpose"] = purpose
        response = await _send(self._http, "GET", f"{self._url}/api/queue", params=params)
        if response.status_code == 404:
            return []
        _raise_for(response, "the console refused the queue")
        return list(response.json()["items"])

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool:
        """Submit an answer: `label` or `preference`, and `seconds`. False: it was not needed any more."""
        body = {"request_id": request_id, "reviewer": reviewer, **answer}
        response = await _send(self._http, "POST", f"{self._url}/api/corrections", json=body)
        if response.status_code in (404, 409, 410):
            return False
        _raise_for(response, "the console refused a correction")
        return bool(response.json().get("counted", True))

    async def cycles(self) -> list[dict[str, Any]]:
        """All cycles of the task, ever."""
        response = await _send(self._http, "GET", f"{self._url}/api/cycles", params={"task": self._task})
        _raise_for(response, "the console cannot list cycles")
        return list(response.json()["cycles"])

    async def cycle(self, cycle_id: str) -> dict[str, Any] | None:
        """The cycle's page; None until the console has heard of it."""
        response = await _send(self._http, "GET", f"{self._url}/api/cycles/{cycle_id}")
        if response.status_code == 404:
            return None
        _raise_for(response, "the console cannot show the cycle")
        return dict(response.json())


class Scheduler:
    """Starts cycles by command."""

    def __init__(self, http: httpx.AsyncClient, url: str, task: str) -> None:
        self._http = http
        self._url = url
        self._task = task

    async def start_cycle(self) -> str:
        """The id of the cycle that began."""
        response = await _send(self._http, "POST", f"{self._url}/api/cycles", json={"task": self._task})
        _raise_for(response, "the scheduler did not start a cycle")
        return str(response.json()["cycle_id"])


async def _send(http: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response:
    """Send, and again while the service is away or overloaded. All calls here are idempotent or refused twice."""
    last: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(0.5 * 2**attempt)
        try:
            response = await http.request(method, url, **options)
        except httpx.HTTPError as error:
            last = error
            continue
        if response.status_code < 500:
            return response
        last = DependencyUnavailable(f"{response.status_code}: {response.text[:300]}")
    raise DependencyUnavailable(f"{url} does not answer: {last!r}", "Check it: ratchet status") from last


def _raise_for(response: httpx.Response, what: str) -> None:
    if not response.is_success:
        raise RatchetError(f"{what}: {response.status_code} {response.text[:500]}", "Is the stack of this version?")
