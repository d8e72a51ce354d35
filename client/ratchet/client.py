"""Sends answers and feedback to the gateway: queued in memory, sent by a thread, retried for `retry_seconds`."""

from __future__ import annotations

import atexit
import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

_PREDICTIONS, _FEEDBACK = "/v1/predictions", "/v1/feedback"
_MAX_BATCH, _MAX_BATCH_BYTES = 50, 200_000
"""Below the gateway's limits: 100 predictions, 256 KiB."""
_MAX_PAUSE_SECONDS = 30.0
_WARNING_SECONDS = 10.0  # Dropped items are reported at most this often.
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

logger = logging.getLogger("ratchet")


class _Item(NamedTuple):
    path: str
    body: bytes


class _Refused(Exception):
    """The gateway will never accept this. `status`: the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """Logs answers and feedback. One per process is enough; safe to use from several threads and after a fork.

    An item is dropped, never waited for, if the queue is full, the gateway refuses it, or the gateway was unavailable
    for `retry_seconds`. `dropped` counts these items, and the logger `ratchet` reports them.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        max_waiting: int = 10_000,
        retry_seconds: float = 600.0,
        timeout_seconds: float = 10.0,
        exit_seconds: float = 5.0,
    ) -> None:
        """`url`: the gateway's, with or without /v1. `max_waiting`: items in memory, a few KB each. `exit_seconds`: how
        long the program's end may wait until the queue is sent."""
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not a gateway's address: expected http://… or https://…")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._max_waiting = max_waiting
        self._retry_seconds = retry_seconds
        self._timeout = timeout_seconds
        self._warned_at = float("-inf")
        self.dropped = 0
        self._reset()
        atexit.register(self.close, exit_seconds)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._queue: deque[_Item] = deque()
        self._sending = 0
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def log(
        self, task: str, messages: Sequence[Mapping[str, Any]], answer: str, *, latency_ms: float = 0.0, **more: Any
    ) -> str:
        """Log an answer and return its prediction id, for `feedback`. Returns at once, whatever the gateway does.

        `messages`: what the model saw, in the chat API's format. `more`: `model`, `user` (stored as a keyed hash),
        `confidence` (0 to 1), `logprob`, `adapter`.
        """
        own_id = uuid4().hex
        fields = {"messages": list(messages), "answer": answer, "latency_ms": latency_ms, **more}
        self._enqueue(_PREDICTIONS, {"task": task, "prediction_id": own_id, **fields})
        return f"{task}/{own_id}"

    def feedback(
        self,
        prediction_id: str,
        kind: str,
        *,
        positive: bool | None = None,
        text: str | None = None,
        user: str | None = None,
    ) -> None:
        """Log feedback on an answer: `thumbs` or `accepted` with `positive`, `edited` or `label` with `text`.

        `prediction_id`: from `log`, `Spans.prediction_id` or the gateway's response. Returns at once.
        """
        fields = {"prediction_id": prediction_id, "kind": kind, "positive": positive, "text": text, "user": user}
        self._enqueue(_FEEDBACK, {field: value for field, value in fields.items() if value is not None})

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until everything logged so far is sent, at most `seconds`. Returns False if something remains."""
        with self._change:
            return self._change.wait_for(lambda: not self._queue and not self._sending, seconds)

    def close(self, seconds: float = 5.0) -> None:
        """Flush for at most `seconds`, then drop what remains and accept no more."""
        atexit.unregister(self.close)
        if self._pid != os.getpid():  # After a fork the queue belongs to the parent.
            return
        flushed = self.flush(seconds)
        with self._change:
            self._closed = True
            waiting = len(self._queue) + self._sending
            self._queue.clear()
            self._change.notify_all()
        if waiting and not flushed:
            self._drop(waiting, f"not sent within {seconds:g} s before the end", always_warn=True)

    def _enqueue(self, path: str, body: dict[str, Any]) -> None:
        try:
            item = _Item(path, json.dumps(body).encode())
        except (TypeError, ValueError) as error:
            return self._drop(1, f"not JSON: {error}", always_warn=True)
        if self._pid != os.getpid():  # After a fork the thread and the queue belong to the parent.
            self._reset()
        with self._change:
            full = len(self._queue) >= self._max_waiting
            if not full and not self._closed:
                self._queue.append(item)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._send_forever, name="ratchet", daemon=True)
                    self._thread.start()
                self._change.notify_all()
                return None
        return self._drop(1, f"{self._max_waiting} are waiting already" if full else "the client is closed")

    def _drop(self, count: int, reason: str, always_warn: bool = False) -> None:
        self.dropped += count
        if always_warn or time.monotonic() - self._warned_at > _WARNING_SECONDS:
            self._warned_at = time.monotonic()
            logger.warning("%d not logged: %s. Dropped so far: %d", count, reason, self.dropped)

    def _send_forever(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                batch = self._next_batch()
                self._sending = len(batch)
            try:
                self._send(batch)
            except Exception as error:  # noqa: BLE001 - the thread must survive to send the rest
                self._drop(len(batch), repr(error), always_warn=True)
            finally:
                with self._change:
                    self._sending = 0
                    self._change.notify_all()

    def _next_batch(self) -> list[_Item]:
        """Take the items of one request, in order: several predictions, or one feedback."""
        batch = [self._queue.popleft()]
        size = len(batch[0].body)
        while self._queue and batch[0].path == self._queue[0].path == _PREDICTIONS and len(batch) < _MAX_BATCH:
            size += len(self._queue[0].body) + 1
            if size > _MAX_BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        return batch

    def _send(self, batch: list[_Item]) -> None:
        """Send a batch, with retries; item by item if the gateway refuses the list because of one of them."""
        is_list = len(batch) > 1
        body = b"[" + b",".join(item.body for item in batch) + b"]" if is_list else batch[0].body
        deadline, pause = time.monotonic() + self._retry_seconds, 0.5
        while True:
            try:
                return self._post(batch[0].path, body)
            except _Refused as error:
                if is_list and error.status not in (401, 403):
                    for item in batch:
                        self._send([item])
                    return None
                return self._drop(len(batch), str(error), always_warn=True)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() + pause > deadline:
                    return self._drop(len(batch), f"gateway unavailable: {error}", always_warn=True)
            if self._wait_for_close(pause):
                return None  # `close` reports what was not sent.
            pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    def _wait_for_close(self, seconds: float) -> bool:
        """Wait until the client is closed, at most `seconds`. Returns True if it is closed."""
        with self._change:
            return self._change.wait_for(lambda: self._closed, seconds)

    def _post(self, path: str, body: bytes) -> None:
        """Send one request. Raises _Refused if the gateway never accepts it, OSError if it may later."""
        request = urllib.request.Request(self._url + path, body, self._headers)  # noqa: S310 - checked to be http(s)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:  # noqa: S310
                response.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _RETRIED_STATUSES:
                    raise OSError(f"status {error.code}") from error
                raise _Refused(error.code, error.read(1_000).decode(errors="replace")) from error
