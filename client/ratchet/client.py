"""Sends answers and feedback to the gateway: queued in memory, sent by a thread, retried for `retry_seconds`.

A batch that fails is halved until it succeeds or has one item. That item is set aside, to be sent again later, and the
rest goes on; only items about the same answer wait for it. While nothing succeeds, the pauses grow.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import logging
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple
from uuid import uuid4

_PREDICTIONS, _FEEDBACK = "/v1/predictions", "/v1/feedback"
_MAX_BATCH, _MAX_BATCH_BYTES = 50, 200_000
"""Below the gateway's limits: 100 predictions, 256 KiB."""
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.5, 30.0
_WARNING_SECONDS = 10.0  # What is dropped, or waits, for the same reason is reported at most this often.
_WRONG_KEY, _RATE_LIMITED = 401, 429
_RETRIED_STATUSES = frozenset({302, 303, 307, 408, 425, _RATE_LIMITED})
"""And all from 500: the others will never succeed."""

logger = logging.getLogger("ratchet")


class _Item:
    """What is sent. `key`: the prediction's id; items with the same key stay in order. Times are of `monotonic`."""

    __slots__ = ("body", "due", "give_up_at", "key", "path", "pause")

    def __init__(self, path: str, key: str, body: bytes) -> None:
        self.path = path
        self.key = key
        self.body = body
        self.pause = 0.0
        self.due = 0.0
        self.give_up_at: float | None = None


class _Queue:
    """The items that are not sent yet: in order, set aside after a failure, or being sent. Guarded by its client."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self._ready: deque[_Item] = deque()
        # By key: the item that failed (absent while it is being sent again), then those that must not overtake it.
        self._aside: dict[str, deque[_Item]] = {}
        self._batch_size = _MAX_BATCH
        self._took_aside = False

    def add(self, item: _Item) -> None:
        self.count += 1
        self.bytes += len(item.body)
        self._ready.append(item)

    def take(self, now: float) -> list[_Item]:
        """Take the items of one request, in order: several predictions, or one feedback. Empty: none is due."""
        aside = min(self._aside.values(), key=lambda items: items[0].due, default=None)
        # In turn with the others, so that many failing items do not hold them up.
        self._took_aside = bool(aside and aside[0].due <= now and not (self._took_aside and self._ready))
        if aside and self._took_aside:
            return [aside.popleft()]
        batch: list[_Item] = []
        size = 0
        while self._ready and len(batch) < self._batch_size:
            item = self._ready[0]
            if item.key in self._aside:
                self._aside[item.key].append(self._ready.popleft())
                continue
            size += len(item.body) + 1
            if batch and (size > _MAX_BATCH_BYTES or not batch[0].path == item.path == _PREDICTIONS):
                break
            batch.append(self._ready.popleft())
        return batch

    def seconds_until_due(self, now: float) -> float | None:
        """Seconds until the next item that was set aside is due; None without one."""
        due = min((items[0].due for items in self._aside.values()), default=None)
        return None if due is None else max(0.0, due - now)

    def remove(self, batch: list[_Item], accepted: bool) -> None:
        """Forget a batch that was sent or is dropped."""
        if accepted:
            self._batch_size = min(self._batch_size * 2, _MAX_BATCH)
        for item in batch:
            self.count -= 1
            self.bytes -= len(item.body)
            self._ready.extendleft(reversed(self._aside.pop(item.key, ())))

    def put_back(self, batch: list[_Item], halve: bool) -> None:
        """Make a batch the next one again, or its first half."""
        self._ready.extendleft(reversed(batch))
        if halve:
            self._batch_size = len(batch) // 2

    def set_aside(self, item: _Item, now: float, retry_seconds: float) -> bool:
        """Keep an item for a later attempt. Returns False if it would be later than `retry_seconds` after the first."""
        item.pause = min(item.pause * 2 or _FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
        item.due = now + item.pause
        item.give_up_at = item.give_up_at or now + retry_seconds
        if item.due > item.give_up_at:
            return False
        self._aside.setdefault(item.key, deque()).appendleft(item)
        return True


class _Failure(NamedTuple):
    """Why the gateway did not accept a request. `status`: the HTTP status, 0 without an answer."""

    status: int
    reason: str
    is_final: bool


class Client:
    """Logs answers and feedback. One per process is enough; safe to use from several threads and after a fork.

    An item is dropped, never waited for, if the queue is full, the gateway refuses it, or all attempts failed for
    `retry_seconds`. `dropped` counts these items, and the logger `ratchet` reports them.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        max_waiting: int = 10_000,
        max_waiting_bytes: int = 32_000_000,
        retry_seconds: float = 600.0,
        timeout_seconds: float = 10.0,
        exit_seconds: float = 5.0,
    ) -> None:
        """`url`: the gateway's, with or without /v1. `max_waiting`, `max_waiting_bytes`: items in memory, and their
        size as JSON. `exit_seconds`: how long the program's end may wait until the queue is sent. Raises ValueError for
        an address or a key that cannot be one."""
        if key and not _is_visible(key):
            raise ValueError("the key has a blank, a line's end or another character that no key has")
        self._url = _without_version(url)
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._retry_seconds = retry_seconds
        self._timeout = timeout_seconds
        self._exit_seconds = exit_seconds
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._closes_at_exit = False
        self._reset()
        _clients.add(self)
        self._close_at_exit()

    def _reset(self) -> None:
        """Start anew, also in a forked process: its parent has the thread and the queue, and may hold the lock."""
        self._queue = _Queue()
        self._sending = 0
        self._reporting = False
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._forget_worker: Callable[[], object] | None = None
        self._warned: dict[str, tuple[str, float]] = {}
        self._trouble = ""
        self.dropped = 0

    def log(
        self, task: str, messages: Sequence[Mapping[str, Any]], answer: str, *, latency_ms: float = 0.0, **more: Any
    ) -> str:
        """Log an answer and return its prediction id, for `feedback`. Returns at once, whatever the gateway does.

        `messages`: what the model saw, in the chat API's format. `more`: `model`, `user` (stored as a keyed hash),
        `confidence` (0 to 1), `logprob`, `adapter`, `occurred_at` (a time with its zone, as text; default: now), and
        the other fields of `POST /v1/predictions`.
        """
        own_id = uuid4().hex
        prediction_id = f"{task}/{own_id}"
        now = datetime.now(timezone.utc).isoformat()  # noqa: UP017 - Python 3.9 has no datetime.UTC
        fields = {"messages": list(messages), "answer": answer, "latency_ms": latency_ms, "occurred_at": now, **more}
        self._enqueue(_PREDICTIONS, prediction_id, {"task": task, "prediction_id": own_id, **fields})
        return prediction_id

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
        self._enqueue(_FEEDBACK, prediction_id, {field: value for field, value in fields.items() if value is not None})

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until nothing is left to send, at most `seconds`. Returns False if something remains."""
        with self._change:
            return self._change.wait_for(lambda: not self._queue.count and not self._reporting, seconds)

    def close(self, seconds: float = 5.0) -> None:
        """Flush for at most `seconds`, then drop what remains and accept no more."""
        atexit.unregister(self.close)
        self._closes_at_exit = False
        self.flush(seconds)
        with self._change:
            if self._forget_worker is not None:
                self._forget_worker()
            self._closed = True
            waiting = self._queue.count
            self._queue = _Queue()
            self._change.notify_all()
        if waiting:
            trouble = f" ({self._trouble})" if self._trouble else ""
            self._drop(waiting, f"not sent within {seconds:g} s before the end{trouble}")

    def _enqueue(self, path: str, key: str, body: dict[str, Any]) -> None:
        try:
            item = _Item(path, key, json.dumps(body).encode())
        except (TypeError, ValueError, RecursionError) as error:
            return self._drop(1, f"not JSON: {error}")
        with self._change:
            if not (reason := self._why_not(item) or self._start_thread()):
                self._queue.add(item)
                self._change.notify_all()
                return None
        return self._drop(1, reason)

    def _why_not(self, item: _Item) -> str:
        """Why the item cannot wait; empty if it can."""
        if self._closed:
            return "the client is closed"
        if self._queue.count - self._sending >= self._max_waiting:
            return f"{self._max_waiting} are waiting already (max_waiting)"
        if self._queue.bytes + len(item.body) > self._max_waiting_bytes:
            return f"more than {self._max_waiting_bytes} bytes would wait (max_waiting_bytes)"
        return ""

    def _close_at_exit(self) -> None:
        """Close at the program's end, after what an application registers later: it may log there. Once."""
        if not self._closes_at_exit:
            self._closes_at_exit = True
            atexit.register(self.close, self._exit_seconds)

    def _start_thread(self) -> str:
        """Start the thread unless it runs. Returns why that is impossible, else nothing; the next item tries again."""
        if self._thread is None:
            thread = threading.Thread(target=self._send_forever, name="ratchet", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # The process may have no more threads, or it ends.
                return str(error)
            self._thread = thread
            self._close_at_exit()
            self._forget_worker = _call_at_end_of_worker(self.close, self._exit_seconds)
        return ""

    def _drop(self, count: int, reason: str) -> None:
        with self._change:
            self.dropped += count
        self._warn("%d not logged: %s. Dropped so far: %d", count, reason, self.dropped)

    def _warn(self, message: str, count: int, reason: str, *more: object) -> None:
        with self._change:
            last_reason, warned_at = self._warned.get(message, ("", 0.0))
            if reason == last_reason and time.monotonic() - warned_at < _WARNING_SECONDS:
                return
            self._warned[message] = (reason, time.monotonic())
        with contextlib.suppress(Exception):  # The application's own handlers and filters may raise: sending goes on.
            logger.warning(message, count, reason, *more)

    def _send_forever(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while batch := self._next_batch():
            failure = self._send(batch)
            with self._change:
                self._sending = 0
                reason = "" if self._closed else self._settle(batch, failure, pause)  # `close` reports what remained.
                self._trouble = "" if failure is None or failure.is_final else failure.reason
                waiting = self._queue.count
                self._reporting = bool(reason)
                self._change.notify_all()
            if reason:  # Without the lock: the application's log handler may be slow, or call this client.
                self._drop(len(batch), reason)
                with self._change:
                    self._reporting = False
                    self._change.notify_all()
            elif self._trouble and waiting:
                self._warn("%d wait to be sent again: %s", waiting, self._trouble)
            if failure is None or failure.is_final:
                pause = _FIRST_PAUSE_SECONDS
            elif len(batch) == 1 or failure.status == _RATE_LIMITED:
                self._wait_for_close(pause)
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    def _next_batch(self) -> list[_Item]:
        """Wait for the next batch. Empty: the client is closed."""
        with self._change:
            while not self._closed:
                if batch := self._queue.take(time.monotonic()):
                    self._sending = len(batch)
                    return batch
                self._change.wait(self._queue.seconds_until_due(time.monotonic()))
        return []

    def _settle(self, batch: list[_Item], failure: _Failure | None, pause: float) -> str:
        """Remove a batch from the queue or leave it for another attempt. Returns why it is dropped, else nothing."""
        if failure is None:
            self._queue.remove(batch, accepted=True)
            return ""
        if len(batch) > 1 and failure.status != _WRONG_KEY:
            # Less at a time does not help against a limit of requests, but in the end against one of bytes.
            self._queue.put_back(batch, halve=failure.status != _RATE_LIMITED or pause == _MAX_PAUSE_SECONDS)
            return ""
        if not failure.is_final and self._queue.set_aside(batch[0], time.monotonic(), self._retry_seconds):
            return ""
        self._queue.remove(batch, accepted=False)
        return failure.reason

    def _wait_for_close(self, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self._closed, seconds)

    def _send(self, batch: list[_Item]) -> _Failure | None:
        """Send one request. Returns why the gateway did not accept it; None if it did."""
        body = b"[" + b",".join(item.body for item in batch) + b"]" if len(batch) > 1 else batch[0].body
        try:
            request = urllib.request.Request(self._url + batch[0].path, body, self._headers)  # noqa: S310 - http(s)
            with self._opener.open(request, timeout=self._timeout) as response:
                response.read()
        except urllib.error.HTTPError as error:
            is_final = error.code < 500 and error.code not in _RETRIED_STATUSES
            return _Failure(error.code, f"{error.code}: {_text_of(error)}", is_final)
        except (OSError, http.client.HTTPException) as error:
            return _Failure(0, f"gateway unavailable: {error}", is_final=False)
        except Exception as error:  # noqa: BLE001 - the thread must survive to send the rest
            return _Failure(0, repr(error), is_final=True)
        return None


def _is_visible(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def _without_version(url: str) -> str:
    """The gateway's address without /v1. Raises ValueError, without the address: it may have a password in it."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # The port is no number.
        is_address = False
    if not is_address or not _is_visible(url) or any(character in url for character in "@?#"):
        raise ValueError("the url is not a gateway's: expected http://HOST:PORT or https://HOST, without a password")
    return url.rstrip("/").removesuffix("/v1")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error. Followed, a POST becomes a GET, which stores nothing, and takes the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _reset_clients() -> None:
    for client in list(_clients):
        client._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_clients)


def _call_at_end_of_worker(close: Callable[[float], None], seconds: float) -> Callable[[], object] | None:
    """Call `close` at the end of a worker of multiprocessing: `atexit` does not, before Python 3.14.

    Returns what takes that back; None in any other process.
    """
    util: Any = sys.modules.get("multiprocessing.util")
    process: Any = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        cancel: Callable[[], object] = util.Finalize(None, close, (seconds,), exitpriority=0).cancel
        return cancel
    return None


def _text_of(error: urllib.error.HTTPError) -> str:
    """Where a redirect leads to, or the beginning of an error's body."""
    if error.code < 400 and (location := error.headers.get("location")):
        return f"redirected to {location}; the client needs the gateway's own address"
    try:
        with error:
            return error.read(1_000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
