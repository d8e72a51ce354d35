"""Where spans wait for their messages, and messages for their span.

Some instrumentations send what was asked and answered as log records, by another request than the span, seconds before
or after it, maybe to another worker. Each half is put on disk, sealed, before it is acknowledged; whoever brings the
second half finds both. One folder a span, one file a request.
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

_SPAN, _SAID = "span", "said"
_LOOK_SECONDS = 5.0
_WAY_OUT = "Let the instrumentation write messages on the spans: OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT."

logger = logging.getLogger(__name__)


class _Found(NamedTuple):
    """All that has come of a span: the span itself, and what was said of it, in the order of its coming."""

    span: Span | None
    said: list[SpanEvent]


class CorrelationBuffer:
    """Shared by all gateways on this folder. What came twice is there once."""

    def __init__(self, folder: Path, cipher: Cipher, seconds: float, most: int, lost: Callable[[int], None]) -> None:
        """`seconds`: how long a half waits; `most` spans do; `lost` is told how many spans nobody came for."""
        self._folder = folder
        self._cipher = cipher
        self._seconds = seconds
        self._most = most
        self._lost = lost
        self._count = 0

    def put_span(self, span: Span) -> Span:
        """Keep the span, unless it is there; returns it with all that was said of it. Raises DependencyUnavailable."""
        found = self._put(_key(span), _SPAN, orjson.dumps(span))
        return replace(span, events=(*span.events, *found.said))

    def put_said(self, trace_id: str, span_id: str, said: Sequence[SpanEvent]) -> Span | None:
        """Keep what was said of a span, unless it is there; returns the span with all that was, if it has come.

        Raises DependencyUnavailable.
        """
        piece = orjson.dumps(said)
        name = f"{_SAID}-{hashlib.sha256(piece).hexdigest()[:32]}"
        found = self._put(f"{trace_id}-{span_id}", name, piece)
        return replace(found.span, events=(*found.span.events, *found.said)) if found.span is not None else None

    def drop(self, span: Span) -> None:
        """The span is whole and kept elsewhere, or will never be."""
        shutil.rmtree(self._folder / _key(span), ignore_errors=True)

    def _put(self, key: str, name: str, piece: bytes) -> _Found:
        if self._count >= self._most:
            raise DependencyUnavailable(f"{self._count} spans wait for their other half, no more fit", _WAY_OUT)
        place = self._folder / key
        try:
            if not (place / name).exists():
                self._count += not place.exists()
                self._write(place, name, self._cipher.encrypt(piece))
            return self._read(place)
        except OSError as error:
            raise DependencyUnavailable(f"a span cannot wait for its other half: {error}", "Free the disk.") from error

    def _write(self, place: Path, name: str, data: bytes) -> None:
        """Whole or not at all. The folder may go at any time: another worker found what was in it whole."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, fresh = tempfile.mkstemp(dir=self._folder)  # Mode 0600.
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            while True:
                place.mkdir(exist_ok=True, mode=0o700)
                with contextlib.suppress(FileNotFoundError):
                    Path(fresh).replace(place / name)
                    return
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise

    def _read(self, place: Path) -> _Found:
        files = []
        with contextlib.suppress(FileNotFoundError):
            for path in place.iterdir():
                with contextlib.suppress(FileNotFoundError, DecryptionFailed):
                    data = orjson.loads(self._cipher.decrypt(path.read_bytes()))
                    files.append((path.stat().st_mtime_ns, path.name, data))
        said = [SpanEvent(**one) for _, name, data in sorted(files) if name != _SPAN for one in data]
        return _Found(next((_span(data) for _, name, data in files if name == _SPAN), None), said)

    async def sweep_forever(self) -> None:
        """Background: what nobody came for within its time goes; spans are counted and told."""
        while True:
            await asyncio.to_thread(self.sweep)
            await asyncio.sleep(_LOOK_SECONDS)

    def sweep(self) -> None:
        """One look through all that waits."""
        places = list(self._folder.iterdir()) if self._folder.exists() else []
        lost, left, oldest = 0, 0, time.time() - self._seconds
        for place in places:
            try:
                if place.stat().st_mtime >= oldest:
                    left += 1
                    continue
            except FileNotFoundError:
                continue
            lost += (place / _SPAN).exists()
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:  # What a worker that was killed had begun to write.
                place.unlink(missing_ok=True)
        self._count = left
        if lost:
            self._lost(lost)
            logger.warning("%d spans are not logged: no messages came for them in %.0f s. %s", lost, self._seconds,
                           _WAY_OUT)  # fmt: skip


def _key(span: Span) -> str:
    return f"{span.trace_id}-{span.span_id}"


def _span(data: dict[str, Any]) -> Span:
    return Span(**{**data, "events": tuple(SpanEvent(**one) for one in data["events"])})
