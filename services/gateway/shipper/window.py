"""What of a slot is on its way to Kafka: the cursor moves past a batch when it, and all before it, has arrived.

There are two lanes. Small events are redacted and published batch by batch. A batch's large ones, whose redaction takes
seconds, follow together, and the small ones of later batches overtake them. A crash ships again what had overtaken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from services.gateway.shipper.redaction import RefusedRecord
from shared.spool import Record, SpooledRecord, SpoolPosition, SpoolReader
from shared.tasks import end_tasks

LARGE = 64 * 1024
"""Bytes of an event that is large: half a second of redaction."""
_MAX_LARGE_BYTES = 32 * 1024 * 1024
"""Of large events on their way; with more, the slot waits."""

Redact = Callable[[Sequence[Record]], Awaitable[list[Record | RefusedRecord]]]
Publish = Callable[[Sequence[Record | RefusedRecord]], Coroutine[Any, Any, None]]
"""Returns when Kafka has acknowledged all."""


class _BatchInFlight(NamedTuple):
    position: SpoolPosition
    publishing: list[asyncio.Task[None]]


class Window:
    """The batches of one slot that are on their way. Use it in one task, and `close` it."""

    def __init__(self, reader: SpoolReader, redact: Redact, publish: Publish) -> None:
        self._reader = reader
        self._redact = redact
        self._publish = publish
        self._batches: deque[_BatchInFlight] = deque()
        self._small: asyncio.Task[None] | None = None
        self._large: asyncio.Task[None] | None = None
        self._redacting_large = asyncio.Lock()
        self._large_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._batches)

    async def add(self, spooled: Sequence[SpooledRecord]) -> None:
        """Redact a batch and begin to publish it. Raises the error of a batch before it that failed."""
        publishing: list[asyncio.Task[None]] = []
        self._batches.append(_BatchInFlight(spooled[-1].position, publishing))
        if large := [item.record for item in spooled if len(item.record.value) >= LARGE]:
            self._large_bytes += _size(large)
            self._large = asyncio.create_task(self._ship_large(self._large, large))
            publishing.append(self._large)
        if small := [item.record for item in spooled if len(item.record.value) < LARGE]:
            redacted = await self._redact(small)
            if self._small is not None:
                await self._small
            self._small = asyncio.create_task(self._publish(redacted))
            publishing.append(self._small)
        while self._large_bytes > _MAX_LARGE_BYTES and self._batches:
            await self.wait()

    def advance(self) -> None:
        """Move the cursor past what has arrived. Raises the error of a batch that failed."""
        while self._batches and all(task.done() for task in self._batches[0].publishing):
            batch = self._batches.popleft()
            for task in batch.publishing:
                task.result()
            self._reader.advance(batch.position)

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until something of the oldest batch has arrived, at most for `seconds`, and advance."""
        unfinished = [task for task in self._batches[0].publishing if not task.done()]
        if unfinished:
            await asyncio.wait(unfinished, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.advance()

    async def close(self) -> None:
        """Stop. What has not arrived is still in the spool."""
        tasks = [task for batch in self._batches for task in batch.publishing]
        tasks += [task for task in (self._small, self._large) if task is not None]
        await end_tasks(tasks)

    async def _ship_large(self, before: asyncio.Task[None] | None, records: Sequence[Record]) -> None:
        """Redact large records while those before them are published."""
        async with self._redacting_large:
            redacted = await self._redact(records)
        if before is not None:
            await before
        await self._publish(redacted)
        self._large_bytes -= _size(records)


def _size(records: Sequence[Record]) -> int:
    return sum(len(record.value) for record in records)
