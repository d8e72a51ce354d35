"""Clients of the gateway, console, scheduler and deployer, as an application, a person and an operator use them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from deploy.demo.data.rows import DataRow
from schemas.tasks import TaskKind
from shared.answers import AnswerForm
from shared.errors import DependencyUnavailable, RatchetError
from shared.model.answers import parse_answer
from shared.model.inference import CHAT

ATTEMPTS = 4
TIMEOUT = httpx.Timeout(120.0, connect=10.0)


@dataclass(frozen=True)
class GatewayAnswer:
    """The gateway's answer to a row's question, or the error that remained after all attempts."""

    row: DataRow
    text: str = ""
    prediction_id: str = ""
    variant: str = ""
    adapter: str = ""
    confidence: float | None = None
    latency_ms: float = 0.0
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def correct(self) -> bool:
        """Objects and calls are compared as JSON, whatever their layout; anything else by its words."""
        return self.ok and AnswerForm.same(self.text, self.row.label)


class TaskClient:
    """A client of one service, for one task."""

    def __init__(self, http: httpx.AsyncClient, url: str, task: str) -> None:
        self._http = http
        self._url = url
        self._task = task

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, and again while the service is unavailable. All calls here are safe to repeat."""
        url = self._url + path
        last: Exception | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(0.5 * 2**attempt)
            try:
                response = await self._http.request(method, url, **options)
            except httpx.HTTPError as error:
                last = error
                continue
            if response.status_code < 500 and response.status_code != 429:
                return response
            last = DependencyUnavailable(f"{response.status_code}: {response.text[:300]}")
        raise DependencyUnavailable(f"{url} does not answer: {last!r}", "Check it: ratchet status") from last


class GatewayClient(TaskClient):
    """The application: asks the gateway's OpenAI-compatible API, with `parameters` of sampling."""

    def __init__(
        self, http: httpx.AsyncClient, url: str, task: str, parameters: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(http, url, task)
        self._parameters = parameters or {}

    async def tasks(self) -> set[str]:
        """Return the names of the tasks that the gateway serves; empty while it is not up."""
        try:
            response = await self._http.get(f"{self._url}/v1/models", timeout=5.0)
            return {model["id"] for model in response.json()["data"]} if response.is_success else set()
        except httpx.HTTPError:
            return set()

    async def ask(self, row: DataRow, user: str) -> GatewayAnswer:
        """Ask one question. Server errors are retried; the last one is in the answer's `error`."""
        body = {
            "model": self._task,
            "messages": [{"role": "user", "content": row.text}],
            "user": user,
            **self._parameters,
        }
        started = time.perf_counter()
        try:
            response = await self._send("POST", "/v1/chat/completions", json=body)
        except DependencyUnavailable as error:
            return GatewayAnswer(row, error=error.reason)
        if not response.is_success:
            return GatewayAnswer(row, error=f"{response.status_code}: {response.text[:300]}")
        return _read_answer(row, response, (time.perf_counter() - started) * 1000)

    async def ask_all(
        self, rows: Iterable[DataRow], users: str, concurrency: int, on_answer: Callable[[GatewayAnswer], None]
    ) -> list[GatewayAnswer]:
        """Ask each row as a user of its own, `concurrency` at a time. Returns the answers in the rows' order."""
        semaphore = asyncio.Semaphore(concurrency)

        async def ask_row(number: int, row: DataRow) -> GatewayAnswer:
            async with semaphore:
                answer = await self.ask(row, f"{users}-{number}")
            on_answer(answer)
            return answer

        return list(await asyncio.gather(*(ask_row(number, row) for number, row in enumerate(rows))))


def parameters_of(kind: TaskKind) -> dict[str, Any]:
    """Return how applications ask a task of this kind: exact objects and calls greedily, others as the server does."""
    return {"temperature": 0.0} if kind in (TaskKind.EXTRACTION, TaskKind.TOOLS) else {}


def _read_answer(row: DataRow, response: httpx.Response, latency_ms: float) -> GatewayAnswer:
    confidence = response.headers.get("x-ratchet-confidence", "")
    return GatewayAnswer(
        row=row,
        text=parse_answer(CHAT, response.json()).plain,
        prediction_id=response.headers.get("x-ratchet-prediction-id", ""),
        variant=response.headers.get("x-ratchet-variant", ""),
        adapter=response.headers.get("x-ratchet-adapter", ""),
        confidence=_parse_number(confidence),
        latency_ms=latency_ms,
    )


def _parse_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class ConsoleClient(TaskClient):
    """A person: uses the console's API, as its own pages do."""

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]:
        """Return questions that `reviewer` has not answered, most urgent first; none while the task is unknown."""
        params: dict[str, Any] = {"task": self._task, "reviewer": reviewer, "limit": limit}
        if purpose:
            params["purpose"] = purpose
        response = await self._send("GET", "/api/queue", params=params)
        if response.status_code == 404:
            return []
        _raise_for_status(response, "the console refused the queue")
        return list(response.json()["items"])

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool:
        """Submit an answer: `label` or `preference`, and `seconds`. Returns False if it was no longer needed."""
        body = {"request_id": request_id, "reviewer": reviewer, **answer}
        response = await self._send("POST", "/api/corrections", json=body)
        if response.status_code in (404, 409, 410):
            return False
        _raise_for_status(response, "the console refused a correction")
        return bool(response.json().get("counted", True))

    async def cycles(self) -> list[dict[str, Any]]:
        """Return all cycles that the task ever had."""
        response = await self._send("GET", "/api/cycles", params={"task": self._task})
        _raise_for_status(response, "the console cannot list cycles")
        return list(response.json()["cycles"])

    async def cycle(self, cycle_id: str) -> dict[str, Any] | None:
        """Return the cycle's page; None until the console has read of it."""
        response = await self._send("GET", f"/api/cycles/{cycle_id}")
        if response.status_code == 404:
            return None
        _raise_for_status(response, "the console cannot show the cycle")
        return dict(response.json())


class SchedulerClient(TaskClient):
    """The operator: starts cycles by hand."""

    async def start_cycle(self) -> str:
        """Start a cycle and return its id."""
        response = await self._send("POST", "/api/cycles", json={"task": self._task})
        _raise_for_status(response, "the scheduler did not start a cycle")
        return str(response.json()["cycle_id"])


class DeployerClient(TaskClient):
    """The operator: sees what the deployer says of the task's candidate."""

    async def rollout(self) -> dict[str, Any] | None:
        """Return the task's rollout with its evidence as it is now; None before the first."""
        response = await self._send("GET", "/api/rollouts")
        _raise_for_status(response, "the deployer cannot show rollouts")
        return next((dict(found) for found in response.json()["rollouts"] if found["task"] == self._task), None)


def _raise_for_status(response: httpx.Response, problem: str) -> None:
    if not response.is_success:
        reason = f"{problem}: {response.status_code} {response.text[:500]}"
        raise RatchetError(reason, "Does the running stack have the version of this command?")
