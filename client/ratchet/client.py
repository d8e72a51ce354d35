"""Answers and feedback on their way to the gateway: queued in memory, sent by a thread, again until they arrive."""

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
_MOST_AT_ONCE, _BYTES_AT_ONCE = 50, 200_000
"""Below what the gateway takes: 100 predictions, 256 KiB."""
_LONGEST_PAUSE = 30.0
_SAY_AGAIN_SECONDS = 10.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})

logger = logging.getLogger("ratchet")


class _Item(NamedTuple):
    path: str
    body: bytes


class _Refused(Exception):
    """The gateway will never take this. `status`: its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """One a process is enough; safe to use from several threads and after a fork.

    What cannot be kept is dropped, never waited for: the queue is full, the gateway refuses it, or it was away for
    `retry_seconds`. `dropped` counts it, and the logger `ratchet` warns of it.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        most_waiting: int = 10_000,
        retry_seconds: float = 600.0,
        timeout_seconds: float = 10.0,
        exit_seconds: float = 5.0,
    ) -> None:
        """`url` of the gateway, with or without /v1; `most_waiting` answers wait in memory, each some KB; at the
        program's end what waits is sent for at most `exit_seconds`."""
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address of a gateway: http://… or https://…")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._most_waiting = most_waiting
        self._retry_seconds = retry_seconds
        self._timeout = timeout_seconds
        self._said_at = float("-inf")
        self.dropped = 0
        self._begin()
        atexit.register(self.close, exit_seconds)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._queue: deque[_Item] = deque()
        self._sending = 0
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def log(
        self, task: str, messages: Sequence[Mapping[str, Any]], answer: str, *, latency_ms: float = 0.0, **more: Any
    ) -> str:
        """Log an answer; returns its name, for `feedback`. At once, whatever the gateway does.

        `messages`: what the model saw, in the chat API's format. `more`: `model`, `user` (stored as a keyed hash),
        `confidence` (0 to 1), `logprob`, `adapter`.
        """
        own_id = uuid4().hex
        told = {"messages": list(messages), "answer": answer, "latency_ms": latency_ms, **more}
        self._put(_PREDICTIONS, {"task": task, "prediction_id": own_id, **told})
        return f"{task}/{own_id}"

    def feedback(
        self, name: str, kind: str, *, positive: bool | None = None, text: str | None = None, user: str | None = None
    ) -> None:
        """What was thought of an answer: `thumbs` or `accepted` with `positive`, `edited` or `label` with `text`.

        `name`: of `log`, of `Spans.name_of`, or the gateway's own prediction id. However late, and at once.
        """
        told = {"prediction_id": name, "kind": kind, "positive": positive, "text": text, "user": user}
        self._put(_FEEDBACK, {field: value for field, value in told.items() if value is not None})

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until all that was given so far has left, at most so long; whether it has."""
        with self._change:
            return self._change.wait_for(lambda: not self._queue and not self._sending, seconds)

    def close(self, seconds: float = 5.0) -> None:
        """Flush, and take no more; what is left then is dropped."""
        atexit.unregister(self.close)
        if self._pid != os.getpid():  # What waits is the parent's.
            return
        left = not self.flush(seconds)
        with self._change:
            self._closed = True
            waiting = len(self._queue) + self._sending
            self._queue.clear()
            self._change.notify_all()
        if left and waiting:
            self._drop(waiting, f"they were not sent within {seconds:g} s of the end", loud=True)

    def _put(self, path: str, body: dict[str, Any]) -> None:
        try:
            item = _Item(path, json.dumps(body).encode())
        except (TypeError, ValueError) as error:
            return self._drop(1, f"it is no JSON: {error}", loud=True)
        if self._pid != os.getpid():  # A fork: the thread stayed in the parent, and so did what waits there.
            self._begin()
        with self._change:
            full = len(self._queue) >= self._most_waiting
            if not full and not self._closed:
                self._queue.append(item)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._send_forever, name="ratchet", daemon=True)
                    self._thread.start()
                self._change.notify_all()
                return None
        return self._drop(1, f"{self._most_waiting} wait already" if full else "the client is closed")

    def _drop(self, count: int, why: str, loud: bool = False) -> None:
        self.dropped += count
        if loud or time.monotonic() - self._said_at > _SAY_AGAIN_SECONDS:
            self._said_at = time.monotonic()
            logger.warning("%d not logged: %s. Dropped so far: %d", count, why, self.dropped)

    def _send_forever(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                batch = self._next()
                self._sending = len(batch)
            try:
                self._send(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread must live to send the rest
                self._drop(len(batch), repr(error), loud=True)
            finally:
                with self._change:
                    self._sending = 0
                    self._change.notify_all()

    def _next(self) -> list[_Item]:
        """What goes in one request: some predictions, or one feedback; always in the order of its coming."""
        batch = [self._queue.popleft()]
        size = len(batch[0].body)
        while self._queue and batch[0].path == self._queue[0].path == _PREDICTIONS and len(batch) < _MOST_AT_ONCE:
            size += len(self._queue[0].body) + 1
            if size > _BYTES_AT_ONCE:
                break
            batch.append(self._queue.popleft())
        return batch

    def _send(self, batch: list[_Item]) -> None:
        """Send it, again and again while that may help; one by one where one of them spoils the list."""
        listed = len(batch) > 1
        body = b"[" + b",".join(item.body for item in batch) + b"]" if listed else batch[0].body
        deadline, pause = time.monotonic() + self._retry_seconds, 0.5
        while True:
            try:
                return self._post(batch[0].path, body)
            except _Refused as error:
                if listed and error.status not in (401, 403):
                    for item in batch:
                        self._send([item])
                    return None
                return self._drop(len(batch), str(error), loud=True)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() + pause > deadline:
                    return self._drop(len(batch), f"the gateway does not take it: {error}", loud=True)
            if self._ended(pause):
                return None  # `close` tells of it.
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _ended(self, seconds: float) -> bool:
        """Wait so long, or until the client is closed; whether it is."""
        with self._change:
            return self._change.wait_for(lambda: self._closed, seconds)

    def _post(self, path: str, body: bytes) -> None:
        """Raises _Refused for what is never taken, OSError for what may be later."""
        request = urllib.request.Request(self._url + path, body, self._headers)  # noqa: S310 - checked to be http(s)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:  # noqa: S310
                response.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _AGAIN:
                    raise OSError(f"it answers {error.code}") from error
                raise _Refused(error.code, error.read(1_000).decode(errors="replace")) from error
