"""What every source of answers has in common: how it is asked, and how it says that there is no answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import orjson

_NO_ROUTE = "Not Found"


class UpstreamFailed(Exception):
    """No answer. `status`, `message`: what the client is told; `raw`: the upstream's own error body, if it sent one.

    `elsewhere`: the request may be sound, another server may answer it. `retry_after`: seconds, if the upstream said.
    """

    def __init__(
        self,
        status: int,
        message: str,
        reason: str,
        *,
        raw: bytes = b"",
        elsewhere: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.raw = raw
        self.elsewhere = elsewhere
        self.retry_after = retry_after

    @property
    def down(self) -> bool:
        """No replica can answer this request, whatever the arm: see `routing.arms.remaining_arms`."""
        return self.elsewhere and self.status != 429


class NotServed(UpstreamFailed):
    """No replica knows the model: another arm may be served."""

    @property
    def down(self) -> bool:
        return False


class Upstream(Protocol):
    """Where answers come from. Cancelling the caller closes the connection, so that vLLM stops computing."""

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of a 200 answer to POST {replica}{path} (path such as "/v1/chat/completions").

        Tries another replica while it is safe. Raises UpstreamFailed, NotServed if no replica serves the model.
        """

    def stream(self, path: str, body: bytes) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Raw pieces of a 200 event stream, cut anywhere. Read to their end, the connection is used again.

        Entering it means that the first piece is there; before it another replica is tried. Entering raises as `post`
        does, reading UpstreamFailed when the stream breaks off.
        """


def refusal(status: int, raw: bytes, retry_after: float | None = None) -> UpstreamFailed:
    """The error of an answer that is none."""
    message = _message(raw)
    # vLLM says 404 for a name it does not know, and 400 for an adapter whose files it found but could not load. A
    # path that it does not know is a 404 too.
    lacking = (status == 404 and message not in ("", _NO_ROUTE)) or (status == 400 and "LoRA adapter" in message)
    if lacking:
        return NotServed(status, message, "not_served", raw=raw, elsewhere=True)
    return UpstreamFailed(
        status,
        message or f"the model server said {status}",
        f"status_{status}",
        raw=raw,
        elsewhere=status >= 500,
        retry_after=retry_after,
    )


def _message(raw: bytes) -> str:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    error = body.get("error", body) if isinstance(body, dict) else {}
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else ""
