"""The event log: events are in the local spool when `append` returns, and in Kafka once the shipper has sent them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from schemas.base import Event
from schemas.catalog import key_of, topic_of
from services.gateway.observability.metrics import Metrics
from shared.privacy.encryption import load_cipher
from shared.spool import Backlog, Record, Spool, SpoolFull, SpoolOptions
from shared.tracing import TraceHeaders

_SAY_AGAIN_SECONDS = 10.0

logger = logging.getLogger(__name__)


class EventLog(Protocol):
    async def append(self, records: Sequence[Record]) -> None:
        """Append events, all or none. They are durable when this returns. Raises SpoolFull, and none is appended."""


class SpoolEventLog:
    """The spool of this process: a file that no other process writes, encrypted, shipped by `shipper.py`."""

    def __init__(self, folder: Path, secrets_folder: Path, options: SpoolOptions, metrics: Metrics) -> None:
        self._folder = folder
        self._secrets = secrets_folder
        self._options = options
        self._metrics = metrics
        self._spool: Spool | None = None
        self._said_at = float("-inf")
        self.trouble = ""
        """Why the last append was refused; empty when it was not."""

    async def start(self) -> None:
        """Take a slot of the spool; that of a gateway that died, if there is one."""
        if self._spool is None:
            self._spool = Spool.open(self._folder, load_cipher(self._secrets, "spool"), self._options)

    async def close(self) -> None:
        if self._spool is not None:
            self._spool.close()

    @property
    def slot(self) -> Path:
        """The folder that this process writes."""
        return self._open.slot

    @property
    def backlog(self) -> Backlog | None:
        """What waits for the shipper; None before the start."""
        return self._spool.backlog if self._spool is not None else None

    @property
    def fullness(self) -> float:
        """How near the limits are: 1.0 is full."""
        if (waiting := self.backlog) is None:
            return 0.0
        age = time.time() - waiting.oldest if waiting.oldest is not None else 0.0
        return max(waiting.bytes / self._options.max_bytes, age / self._options.max_age_seconds)

    @property
    def sync_failures(self) -> int:
        """How often the disk failed to keep what it had taken."""
        return self._spool.sync_failures if self._spool is not None else 0

    async def append(self, records: Sequence[Record]) -> None:
        """Append events, all or none. Takes tens of µs, with `sync: always` a disk write. Raises SpoolFull."""
        spool = self._spool or self._open
        started = time.perf_counter()
        try:
            spool.append(records)
            self._metrics.spool_seconds.observe(time.perf_counter() - started)
            await spool.synced()
        except SpoolFull as error:
            self._refused(error)
            raise
        if self.trouble:
            self.trouble = ""

    def _refused(self, error: SpoolFull) -> None:
        """Count it, and log it as an error: not every time, while the spool is full it would be every request."""
        self._metrics.spool_refusals.inc()
        self.trouble = error.reason
        if time.monotonic() - self._said_at > _SAY_AGAIN_SECONDS:
            self._said_at = time.monotonic()
            logger.error("an event was not kept: %s. %s", error.reason, error.way_out)

    @property
    def _open(self) -> Spool:
        if self._spool is None:
            raise RuntimeError("SpoolEventLog.start() was not called")
        return self._spool


def encode_event(event: Event, trace: TraceHeaders = ()) -> Record:
    """The event as Kafka will keep it; `trace`: the headers that carry its request's on."""
    return Record(topic_of(type(event)).name, key_of(event).encode(), event.model_dump_json().encode(), trace)
