"""The correlation buffer: spans wait here for their messages, and messages for their span.

Some instrumentations send messages as log records, in another request than the span, seconds before or after it, and
perhaps to another worker. Each half is encrypted on disk before it is acknowledged; whoever stores the second half
reads both. There is a folder for each span and a file for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from services.gateway.telemetry.spans import Span, SpanEvent
from shared.errors import DependencyUnavailable
from shared.privacy.encryption import Cipher, DecryptionFailed

_SPAN_FILE, _EVENTS_FILE = "span", "events"
_SWEEP_SECONDS = 5.0
_WAY_OUT = "Let the instrumentation write messages on the spans: OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT."

logger = logging.getLogger(__name__)


class _Stored(NamedTuple):
    """What is stored of a span: itself, if it has arrived, and its events in order of arrival."""

    span: Span | None
    events: list[SpanEvent]


class CorrelationBuffer:
    """Shared by all gateways with the same folder. Adding is idempotent."""

    def __init__(
        self, folder: Path, cipher: Cipher, wait_seconds: float, max_spans: int, on_lost: Callable[[int], None]
    ) -> None:
        """A half waits for `wait_seconds`; `on_lost` gets the number of spans whose messages did not arrive in time."""
        self._folder = folder
        self._cipher = cipher
        self._wait_seconds = wait_seconds
        self._max_spans = max_spans
        self._on_lost = on_lost
        self._count = 0

    def add_span(self, span: Span) -> Span:
        """Store a span; return it with all events stored for it. Raises DependencyUnavailable."""
        stored = self._add(_key(span.trace_id, span.span_id), _SPAN_FILE, orjson.dumps(span))
        return replace(span, events=(*span.events, *stored.events))

    def add_events(self, trace_id: str, span_id: str, events: Sequence[SpanEvent]) -> Span | None:
        """Store events; return their span with all its events, or None if it has not arrived.

        Raises DependencyUnavailable.
        """
        data = orjson.dumps(events)
        name = f"{_EVENTS_FILE}-{hashlib.sha256(data).hexdigest()[:32]}"
        span, stored = self._add(_key(trace_id, span_id), name, data)
        return replace(span, events=(*span.events, *stored)) if span is not None else None

    def remove(self, span: Span) -> None:
        """Delete a span that is logged or rejected."""
        shutil.rmtree(self._folder / _key(span.trace_id, span.span_id), ignore_errors=True)

    def _add(self, key: str, name: str, data: bytes) -> _Stored:
        if self._count >= self._max_spans:
            raise DependencyUnavailable(f"the correlation buffer is full: {self._count} spans wait", _WAY_OUT)
        folder = self._folder / key
        try:
            if not (folder / name).exists():
                self._count += not folder.exists()
                self._write(folder, name, self._cipher.encrypt(data))
            return self._read(folder)
        except OSError as error:
            raise DependencyUnavailable(
                f"the correlation buffer cannot be written: {error}", "Free the disk."
            ) from error

    def _write(self, folder: Path, name: str, data: bytes) -> None:
        """Write a file atomically. Another worker that read the whole span may delete the folder at any time."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=self._folder)  # Mode 0600.
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            while True:
                folder.mkdir(exist_ok=True, mode=0o700)
                with contextlib.suppress(FileNotFoundError):
                    Path(temporary).replace(folder / name)
                    return
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _read(self, folder: Path) -> _Stored:
        files = []
        with contextlib.suppress(FileNotFoundError):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError, DecryptionFailed):
                    data = orjson.loads(self._cipher.decrypt(path.read_bytes()))
                    files.append((path.stat().st_mtime_ns, path.name, data))
        events = [SpanEvent(**event) for _, name, data in sorted(files) if name != _SPAN_FILE for event in data]
        return _Stored(next((_decode_span(data) for _, name, data in files if name == _SPAN_FILE), None), events)

    async def sweep_forever(self) -> None:
        """Background: delete what waited too long."""
        while True:
            await asyncio.to_thread(self.sweep)
            await asyncio.sleep(_SWEEP_SECONDS)

    def sweep(self) -> None:
        """Delete what waited too long; count and log the spans among it."""
        paths = list(self._folder.iterdir()) if self._folder.exists() else []
        lost, waiting, oldest = 0, 0, time.time() - self._wait_seconds
        for path in paths:
            try:
                if path.stat().st_mtime >= oldest:
                    waiting += 1
                    continue
            except FileNotFoundError:
                continue
            lost += (path / _SPAN_FILE).exists()
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:  # The temporary file of a worker that was killed.
                path.unlink(missing_ok=True)
        self._count = waiting
        if lost:
            self._on_lost(lost)
            logger.warning("%d spans are not logged: their messages did not arrive in %.0f s. %s", lost,
                           self._wait_seconds, _WAY_OUT)  # fmt: skip


def _key(trace_id: str, span_id: str) -> str:
    return f"{trace_id}-{span_id}"


def _decode_span(data: dict[str, Any]) -> Span:
    return Span(**{**data, "events": tuple(SpanEvent(**event) for event in data["events"])})
