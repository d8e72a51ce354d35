"""A client of vLLM, or of any OpenAI-compatible engine: completions with log-probabilities, logged requests sent again,
and LoRA adapters."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from schemas.conversation import Answer, JsonObject
from shared.addresses import without_credentials
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.model.answers import parse_answer

CHAT = "/v1/chat/completions"
_METRICS_SECONDS = 2.0
_CONNECT_SECONDS = 10.0
"""An answer may take long; a host that is there takes a connection sooner."""
_LOGPROBS: Mapping[str, Any] = {"logprobs": True}
_LOAD_REFUSED = "add_lora method failed"
"""vLLM 0.32 says 500 where it refuses an adapter, for its rank for example. It would refuse it again."""
_UNLOADABLE = re.compile(r"LoRA adapter '[^']*' was found but could not be loaded\.")
"""vLLM's whole message where it refuses (400) a request for an adapter that its resolver found: others may serve it."""
_SHORT = {"role": "user", "content": "."}


class NotServed(InvalidMessage):
    """The engine refuses whoever asks, or does not serve the model, whatever is asked: one that restarts may later."""


@dataclass(frozen=True)
class Completion:
    """One answer; `text` is `Answer.plain`. `logprob` is the sum over its tokens in nats; None where there are none.

    `tokens_logprobs` is OpenAI's `logprobs.content`, one object per token.
    """

    text: str
    logprob: float | None
    tokens: int
    prompt_tokens: int
    finish_reason: str
    latency_ms: float
    tokens_logprobs: tuple[Mapping[str, Any], ...] = ()


class InferenceClient:
    """Sends requests to replicas in turn. Raises DependencyUnavailable when the replica does not answer."""

    def __init__(self, urls: Sequence[str], timeout_seconds: float = 60.0, key: str = "") -> None:
        self._urls = tuple(urls)
        self._next = itertools.cycle(self._urls)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, _CONNECT_SECONDS))
        self._client = httpx.AsyncClient(timeout=limits, headers=headers)

    async def close(self) -> None:
        await self._client.aclose()

    async def complete(
        self,
        model: str,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[JsonObject] = (),
        choices: Sequence[str] = (),
        max_tokens: int = 256,
        fields: Mapping[str, Any] = _LOGPROBS,
        url: str | None = None,
    ) -> Completion:
        """Complete greedily; with `choices`, constrained to one of them. `fields` are further fields of the request.

        `url`: the replica to ask; None: the one whose turn it is.

        Raises InvalidMessage when the engine refuses the request itself (4xx), DependencyUnavailable otherwise.
        """
        body: dict[str, Any] = {
            **fields, "model": model, "messages": list(messages), "temperature": 0.0, "max_tokens": max_tokens,
        }  # fmt: skip
        if tools:
            body["tools"] = list(tools)
        if choices:
            body["structured_outputs"] = {"choice": list(choices)}
        url = url or next(self._next)
        started = time.perf_counter()
        response = await self._post(url, CHAT, body)
        latency_ms = (time.perf_counter() - started) * 1000
        with _answers_expected(url):
            return parse_completion(response, latency_ms)

    def in_turn(self) -> list[str]:
        """Return all replicas, whose turn it is first: the order in which a request may be tried."""
        first = self._urls.index(next(self._next))
        return [*self._urls[first:], *self._urls[:first]]

    async def answer(self, model: str, path: str, body: Mapping[str, Any], url: str) -> Answer:
        """Send a request that another client made, of any of the three APIs and without a stream, to a replica's model.

        Returns the first answer. Raises as `complete` does.
        """
        response = await self._post(url, path, {**body, "model": model})
        with _answers_expected(url):
            return parse_answer(path, response)

    async def models(self, url: str) -> set[str]:
        """Return the models that a replica lists: the base model and the adapters loaded so far."""
        answer = await self._request("GET", url, "/v1/models")
        try:
            return {model["id"] for model in answer["data"]}
        except (LookupError, TypeError) as error:  # A proxy's page, while the engine behind it starts.
            raise DependencyUnavailable(f"{without_credentials(url)} does not list its models: {error!r}") from error

    async def context_tokens(self) -> int | None:
        """Return how many tokens of prompt and answer the first replica takes; None: it does not say (vLLM does)."""
        answer = await self._request("GET", self._urls[0], "/v1/models")
        listed = (answer or {}).get("data", ())
        return next((model["max_model_len"] for model in listed if model.get("max_model_len")), None)

    async def metrics(self, url: str) -> str:
        """Return a replica's metrics in Prometheus' text format. Raises as `complete` does."""
        try:
            async with asyncio.timeout(_METRICS_SECONDS):  # Whatever it sends, and however slowly.
                return (await self._response("GET", url, "/metrics")).text
        except TimeoutError as error:
            raise DependencyUnavailable(f"{without_credentials(url)} does not tell its metrics in time") from error

    async def serve_adapter(self, name: str, folder: str) -> None:
        """Make every replica serve the adapter `name`. Idempotent; call it before the first use."""
        for url in self._urls:
            if name not in await self.models(url):
                await self.load_adapter(url, name, folder)

    async def load_adapter(self, url: str, name: str, folder: str) -> None:
        """Make one replica serve the adapter `name`, which it does not list. Raises as `complete` does.

        A replica with vLLM's filesystem resolver finds the adapter at the first request; others are asked to load it.
        """
        try:
            await self._post(url, CHAT, {"model": name, "messages": [_SHORT], "max_tokens": 1})
        except InvalidMessage:
            try:
                await self._post(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
            except InvalidMessage:  # Another service may have been faster, which vLLM refuses.
                if name not in await self.models(url):
                    raise
            except DependencyUnavailable as error:
                if _LOAD_REFUSED not in error.reason:
                    raise
                raise InvalidMessage(error.reason) from error

    async def unload_adapter(self, url: str, name: str) -> None:
        """Make one replica forget the adapter `name`."""
        await self._post(url, "/v1/unload_lora_adapter", {"lora_name": name})

    async def _post(self, url: str, path: str, body: dict[str, Any]) -> Any:
        return await self._request("POST", url, path, json=body)

    async def _request(self, method: str, url: str, path: str, **options: Any) -> Any:
        response = await self._response(method, url, path, **options)
        if not response.headers.get("content-type", "").startswith("application/json"):
            return None
        with _answers_expected(url):  # A proxy may have cut it.
            return response.json()

    async def _response(self, method: str, url: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, url + path, **options)
        except httpx.HTTPError as error:
            shown = without_credentials(url)
            raise DependencyUnavailable(f"{shown} does not answer: {error!r}", "Check it: ratchet status") from error
        if response.status_code >= 400:
            reason = f"{without_credentials(url + path)} answered {response.status_code}: {response.text[:300]}"
            if response.status_code >= 500 or response.status_code in (408, 429):
                raise DependencyUnavailable(reason)
            is_not_served = response.status_code in (401, 403, 404) or _is_unloadable(response)
            raise (NotServed if is_not_served else InvalidMessage)(reason)
        return response


def _is_unloadable(response: httpx.Response) -> bool:
    try:
        return bool(_UNLOADABLE.fullmatch(response.json()["error"]["message"]))
    except (ValueError, LookupError, TypeError):
        return False


@contextmanager
def _answers_expected(url: str) -> Iterator[None]:
    """Turn the error of a response that has no answer into that of an engine that does not answer."""
    try:
        yield
    except ValueError as error:
        raise DependencyUnavailable(f"{without_credentials(url)}: {error}") from error


def parse_completion(answer: Any, latency_ms: float) -> Completion:
    """Return the first choice of an OpenAI chat completion. Raises ValueError if there is none."""
    text = parse_answer(CHAT, answer).plain
    choice = answer["choices"][0]
    content = (choice.get("logprobs") or {}).get("content") or []
    usage = answer.get("usage") or {}
    return Completion(
        text=text,
        logprob=sum(token["logprob"] for token in content) if content else None,
        tokens=int(usage.get("completion_tokens", len(content))),
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        finish_reason=choice.get("finish_reason") or "",
        latency_ms=latency_ms,
        tokens_logprobs=tuple(content),
    )
