"""Asks a judge within its limits: of requests, of time, and of how many at once. A failing judge is given up early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import httpx

from schemas.evaluation_settings import JudgeSettings
from services.evaluator.judge.question import VERDICT_FORMAT, Verdict, read_verdict

MAX_ATTEMPTS = 3
GIVE_UP_AFTER = 8
"""Comparisons in a row without an answer: the judge is away, and the others would only wait for it."""
MAX_SECONDS = 1_800.0
"""Of all comparisons of an evaluation, which then goes on without the rest."""
_TIMEOUT_SECONDS = 60.0
"""Of one request: a model that thinks takes up to half of it."""
_MAX_TOKENS = 2_048
"""Of one verdict, with what a model thinks before it."""
_BACKOFF_SECONDS = 1.0
_REFUSED = (401, 403, 404)
_BAD_REQUEST = (400, 422)


class _Said(NamedTuple):
    text: str
    is_cut: bool


class JudgeStopped(Exception):
    """No further comparison is possible; the text says why, and quotes neither the key nor an answer."""


class JudgeClient:
    """Sends comparisons to an OpenAI-compatible API, greedily and with a structured verdict where it has one."""

    def __init__(
        self,
        settings: JudgeSettings,
        key: str = "",
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        backoff_seconds: float = _BACKOFF_SECONDS,
    ) -> None:
        self._settings = settings
        self._url = f"{settings.url.rstrip('/')}/chat/completions"
        # As bytes, those of the environment: of a text that is not ASCII, httpx would quote the key in an error.
        headers = {b"authorization": f"Bearer {key}".encode(errors="surrogateescape")} if key else {}
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, headers=headers, transport=transport)
        self._limit = asyncio.Semaphore(settings.concurrency)
        self._clock, self._ends = clock, clock() + MAX_SECONDS
        self._backoff_seconds = backoff_seconds
        greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": _MAX_TOKENS}
        # It may not know structured output, or a field of these; what it says in words is read, too.
        self._forms: list[dict[str, Any]] = [{**greedy, "response_format": VERDICT_FORMAT}, greedy, {}]
        self._is_known = False  # It takes the first of these forms.
        self._unanswered = self._cut = 0
        self._stopped: str | None = None
        self.requests = 0

    async def close(self) -> None:
        await self._client.aclose()

    async def verdict(self, messages: Sequence[dict[str, str]]) -> Verdict | None:
        """Return the verdict of one comparison; None without an answer. Raises JudgeStopped where no further one can.

        An answer that is no verdict prefers neither: who cannot say so on hard pairs must not gain by it.
        """
        async with self._limit:
            if self._stopped is not None:
                raise JudgeStopped(self._stopped)
            try:
                return await self._verdict(messages)
            except JudgeStopped as error:
                self._stopped = str(error)
                raise

    async def _verdict(self, messages: Sequence[dict[str, str]]) -> Verdict | None:
        status = 0
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._backoff_seconds * 2 ** (attempt - 1))
            status, said = await self._ask(messages)
            if said is not None:
                self._unanswered = 0
                return self._read(said)
            if status in _BAD_REQUEST:  # It would be refused again.
                break
        self._unanswered += 1
        if self._unanswered >= GIVE_UP_AFTER:
            refused = f" (refused with {status}: check its model and its context)" if status in _BAD_REQUEST else ""
            raise JudgeStopped(f"Given up: {self._unanswered} comparisons in a row got no answer{refused}.")
        return None

    def _read(self, said: _Said) -> Verdict:
        """Return the verdict of an answer. Raises JudgeStopped where one after the other is cut off before it."""
        verdict = read_verdict(said.text)
        self._cut = self._cut + 1 if verdict is None and said.is_cut else 0
        if self._cut >= GIVE_UP_AFTER:
            raise JudgeStopped(
                f"Given up: {self._cut} answers in a row were cut off at {_MAX_TOKENS:,} tokens before a "
                "verdict, as those of models are that think first: name one that does not."
            )
        return verdict or "tie"

    async def _ask(self, messages: Sequence[dict[str, str]]) -> tuple[int, _Said | None]:
        """Return the status and the answer; None where there is none."""
        forms = self._forms
        status, body = await self._post(messages, forms[0])
        while status in _BAD_REQUEST and not self._is_known and len(forms) > 1:
            forms = forms[1:]
            status, body = await self._post(messages, forms[0])
        if status == httpx.codes.OK and not self._is_known:
            self._forms, self._is_known = forms, True
        if status in _REFUSED:
            raise JudgeStopped(f"The judge refuses requests with status {status}: check its url, model and key.")
        try:
            (choice, *_) = body["choices"]
            said = _Said(str(choice["message"]["content"] or ""), is_cut=choice.get("finish_reason") == "length")
        except (LookupError, TypeError, ValueError, AttributeError):
            return status, None
        return status, said if status == httpx.codes.OK else None

    async def _post(self, messages: Sequence[dict[str, str]], fields: dict[str, Any]) -> tuple[int, Any]:
        """Return the status, 0 without an answer, and the body."""
        if self.requests >= self._settings.max_requests:
            raise JudgeStopped(f"Its {self._settings.max_requests} requests (max_requests) are used up.")
        if self._clock() >= self._ends:
            raise JudgeStopped(f"Its {MAX_SECONDS:,.0f} s are over.")
        self.requests += 1
        body = {"model": self._settings.model, "messages": list(messages), **fields}
        try:
            response = await self._client.post(self._url, json=body)
            return response.status_code, response.json() if response.is_success else None
        except (httpx.HTTPError, ValueError, RecursionError):
            return 0, None
