"""The durable event log: an event is in the local spool when `append` returns, and later shipped to Kafka."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from schemas.base import Event
from schemas.catalog import key_of, topic_of
from services.gateway.formats.media import InlineMedia
from services.gateway.observability.metrics import Metrics
from services.gateway.observability.rate_limited_log import RateLimitedWarning
from services.gateway.recording.group_commit import GroupCommit
from services.gateway.recording.media_folder import MediaFolder
from shared.privacy.encryption import load_cipher
from shared.spool import Backlog, Record, Spool, SpoolOptions, SpoolUnavailable, Sync
from shared.tracing import TraceHeaders

logger = logging.getLogger(__name__)


class SpoolEventLog:
    """An event log in this process's slot of the spool: encrypted files that no other process writes."""

    def __init__(
        self,
        folder: Path,
        secrets_folder: Path,
        options: SpoolOptions,
        metrics: Metrics,
        media: MediaFolder | None = None,
    ) -> None:
        self._folder = folder
        self._secrets = secrets_folder
        self._options = options
        self._syncs_always = options.sync is Sync.ALWAYS
        self._metrics = metrics
        self._media = media
        self._spool: Spool | None = None
        self._group = GroupCommit(self._write)
        self._refusals = RateLimitedWarning(logger)
        self.problem = ""
        """Why the last append failed; empty after one that succeeded."""

    async def start(self) -> None:
        """Open a slot of the spool, preferably one that a dead gateway left."""
        if self._spool is None:
            self._spool = Spool.open(self._folder, load_cipher(self._secrets, "spool"), self._options)

    async def close(self) -> None:
        if self._spool is not None:
            self._group.flush()
            self._spool.close()

    @property
    def slot(self) -> Path:
        """The folder that this process writes to."""
        return self._open.slot

    @property
    def backlog(self) -> Backlog | None:
        """What waits for the shipper; None before `start`."""
        return self._spool.backlog if self._spool is not None else None

    @property
    def fullness(self) -> float:
        """How much of the limits is used; 1.0 is full."""
        if (backlog := self.backlog) is None:
            return 0.0
        age = time.time() - backlog.oldest if backlog.oldest is not None else 0.0
        return max(backlog.bytes / self._options.max_bytes, age / self._options.max_age_seconds)

    @property
    def sync_failures(self) -> int:
        """How often syncing to disk failed."""
        return self._spool.sync_failures if self._spool is not None else 0

    async def append(self, records: Sequence[Record], media: Collection[InlineMedia] | None = None) -> None:
        """Append events, all or none. Takes tens of µs, with `sync: always` a disk write. Raises SpoolUnavailable.

        Media take a while, in which a client that leaves must not undo the record.
        """
        if media is not None:
            return await asyncio.shield(asyncio.ensure_future(self._append_with_media(records, media)))
        try:
            if self._syncs_always:  # Its fsync is shared by those that wait, and must be of what was written just now.
                self._write(records)
                await self._open.synced()
            elif (written := self._group.append(records)) is not None:
                await written
        except SpoolUnavailable as error:
            self._count_refusal(error)
            raise
        if self.problem:
            self.problem = ""

    def _write(self, records: Sequence[Record]) -> None:
        spool = self._spool or self._open
        started = time.perf_counter()
        spool.append(records)
        self._metrics.spool_seconds.observe(time.perf_counter() - started)

    async def _append_with_media(self, records: Sequence[Record], media: Collection[InlineMedia]) -> None:
        if self._media is None:
            raise RuntimeError("this event log has no folder for media")
        try:
            await self._media.write(media)
        except SpoolUnavailable as error:
            self._count_refusal(error)
            raise
        await self.append(records)

    def _count_refusal(self, error: SpoolUnavailable) -> None:
        self._metrics.spool_refusals.inc()
        self.problem = error.reason
        self._refusals.log("event not recorded: %s. %s", error.reason, error.way_out)

    @property
    def _open(self) -> Spool:
        if self._spool is None:
            raise RuntimeError("SpoolEventLog.start() was not called")
        return self._spool


def encode_event(event: Event, trace: TraceHeaders = ()) -> Record:
    """The event as a record for Kafka. `trace`: the trace headers of its request."""
    return Record(topic_of(type(event)).name, key_of(event).encode(), event.model_dump_json().encode(), trace)
