"""The interface of every source of answers, and its errors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import orjson

_NO_ROUTE = "Not Found"
_SHORTAGE_RETRY_SECONDS = 2.0
_UNLOADABLE = re.compile(r"LoRA adapter '[^']*' was found but could not be loaded\.")
"""vLLM's whole message: others quote what a client sent."""
_NO_LOGPROBS = re.compile(r"not allowed to request logprobs")
"""OpenAI's words about a model that reasons."""


class UpstreamFailed(Exception):
    """The upstream gave no answer. `status`, `message`: for the client; `raw`: the upstream's error body, if any.

    `another_may_answer`: the request may be valid, so another server may answer it. `retry_after`: seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        reason: str,
        *,
        raw: bytes = b"",
        another_may_answer: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.raw = raw
        self.another_may_answer = another_may_answer
        self.retry_after = retry_after
        self.left_untried = False
        """Whether a replica may be there that was not asked: retries are limited, and it may have asked for a pause."""

    @property
    def down(self) -> bool:
        """True if no replica can answer, whatever the arm: see `routing.arms.remaining_arms`.

        A server that answers 500 is there. vLLM does so to some requests that are their client's mistake, a picture's
        address that nobody answers, say: they must not send prompts elsewhere.
        """
        return self.another_may_answer and not self.left_untried and self.status not in (429, 500)

    @property
    def refused_field(self) -> str | None:
        """The field that is refused, as vLLM and OpenAI say in `error.param` of a 400, and OpenAI in words of a 403."""
        if self.status == 403 and _NO_LOGPROBS.search(self.message):
            return "logprobs"
        if self.status != 400:
            return None
        try:
            field = orjson.loads(self.raw)["error"]["param"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        if field == "max_tokens" and "max_completion_tokens" not in self.message:
            return None  # It is the number that is refused.
        return field if isinstance(field, str) else None


class ModelNotServed(UpstreamFailed):
    """No replica serves the model; another arm may be served."""

    @property
    def down(self) -> bool:
        return False


class KeyRefused(UpstreamFailed):
    """A server refused the gateway's own key, which is not the client's mistake. Another replica may take it, but the
    replicas are not down: no prompt leaves for the external API for want of a key."""

    @property
    def down(self) -> bool:
        return False


@dataclass(frozen=True)
class ServerKey:
    """The gateway's own key for a server, empty if it needs none. `server` and `setting`: what a refusal names."""

    key: str = field(default="", repr=False)
    server: str = "the model server"
    setting: str = "RATCHET_VLLM_KEY"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def refused(self) -> KeyRefused:
        """The error for a response 401 or 403. The server's own text is left out: it may quote the key."""
        message = f"{self.server} refused the gateway's key: its operator must correct {self.setting}"
        return KeyRefused(502, message, "key_refused", another_may_answer=True)


class Upstream(Protocol):
    """A source of answers. Cancelling a call closes its connection, so that vLLM stops computing."""

    async def post(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> bytes:
        """POST to {replica}{path} (such as "/v1/chat/completions") and return the body of the 200 response.

        `lines`: header lines of this request, each with its end. `model`: which it is for; replicas that have it are
        asked first. Tries another replica while that is safe. Raises UpstreamFailed; ModelNotServed if no
        replica serves the model.
        """

    def stream(
        self, path: str, body: bytes, lines: bytes = b"", model: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """POST and yield raw pieces of a 200 event stream, cut anywhere.

        Leaving it without an error reads what is left, which after a complete answer is at most the response's end, so
        that its connection is reused. Leaving it with an error, or with more left than comes in a second, closes its
        connection, so that the server stops.

        Entering waits for the first piece; until then another replica may be tried. Entering raises as `post` does;
        reading raises UpstreamFailed if the stream breaks off.
        """


def error_of_response(status: int, raw: bytes, retry_after: float | None = None) -> UpstreamFailed:
    """The error for a response that is not 200."""
    message = _message(raw)
    # vLLM answers 404 for an unknown model, and 400 for an adapter whose files it found but could not load. An
    # unknown path is a 404 too.
    unloadable = status == 400 and _UNLOADABLE.fullmatch(message)
    if unloadable or (status == 404 and message not in ("", _NO_ROUTE)):
        return ModelNotServed(status, message, "not_served", raw=raw, another_may_answer=True)
    return UpstreamFailed(
        status,
        message or f"the model server answered {status}",
        f"status_{status}",
        raw=raw,
        another_may_answer=is_servers_failure(status),
        retry_after=retry_after,
    )


def no_connection() -> UpstreamFailed:
    """The error of a request that the gateway itself could not send: it says nothing about the server."""
    message = "the gateway has no free connection to a model server; try again"
    return UpstreamFailed(503, message, "no_connection", retry_after=_SHORTAGE_RETRY_SECONDS)


def timed_out(seconds: float) -> UpstreamFailed:
    """The error of an answer that exceeded a time limit."""
    return UpstreamFailed(504, f"the model server took longer than {seconds:g} s", "timeout")


def retry_after_of(headers: Mapping[bytes, bytes]) -> float | None:
    """The seconds of a Retry-After header; None if it is missing or a date."""
    try:
        seconds = float(headers.get(b"retry-after", b""))
    except ValueError:
        return None
    return seconds if 0.0 <= seconds < float("inf") else None


def is_servers_failure(status: int) -> bool:
    """Return True for a status that says something about the server, False for one about the request.

    501 is about the request: vLLM answers it to a picture in a form that it does not read.
    """
    return status >= 500 and status != 501


def listed_models(raw: bytes) -> frozenset[str] | None:
    """Return the models of a response to `GET /v1/models`; None if it is no list of models."""
    try:
        return frozenset(str(model["id"]) for model in orjson.loads(raw)["data"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _message(raw: bytes) -> str:
    """What the server says: vLLM's and OpenAI's `error.message`, or a text where other servers have one; else empty."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    error = body.get("error", body) if isinstance(body, dict) else {}
    message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""
