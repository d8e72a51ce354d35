"""Kafka for many records at once: sent without waiting for each, done when all replicas have all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.partitioner import murmur2

from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.shipper.redaction import RefusedRecord
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.clients import client_options, producer_options
from shared.settings import Settings
from shared.spool import Record

_JSON = ("content-type", b"application/json")
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_LINGER_MS = 5
_BATCH_BYTES = 256 * 1024
"""Of one partition, before compression: below Kafka's usual limit of 1 MB for one batch."""
_NEWS_SECONDS = 5.0
_CLOSING_SECONDS = 3.0
_LONGEST_PAUSE = 2.0
"""Between two looks for a broker that is away: so late, at most, does shipping begin when it is back."""

logger = logging.getLogger(__name__)


@lru_cache(maxsize=64)
def _hash(key: bytes) -> int:
    """Kafka's own, in Python a third of what sending costs; kept for the second event of a request."""
    return cast(int, murmur2(key)) & 0x7FFFFFFF


def _partition(key: bytes, every: list[int], _: list[int]) -> int:
    """Where every other client puts this key."""
    return every[_hash(key) % len(every)]


Bury = Callable[[Record, Exception], Awaitable[None]]
SetAside = Callable[[Record], Path]


class BatchPublisher:
    """One producer. Idempotent where the broker can, so that its own retries are no second records."""

    def __init__(self, settings: Settings, bury: Bury, aside: SetAside, status: ShipperStatus) -> None:
        self._settings = settings
        self._bury = bury
        self._aside = aside
        self._status = status
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def deliver(self, records: Sequence[Record | RefusedRecord]) -> None:
        """Returns when Kafka has every record, or its dead letter: however long the broker is away."""
        left = list(records)
        pause = 0.2
        while left:
            try:
                left = await self.send(left)
            except DependencyUnavailable as error:
                self._status.error = error.reason
                logger.warning("%s; again in %.1f s", error.reason, pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def send(self, records: Sequence[Record | RefusedRecord]) -> list[Record | RefusedRecord]:
        """Try once; returns what is to be tried again. Raises DependencyUnavailable if Kafka took nothing at all."""
        refused = [one for one in records if isinstance(one, RefusedRecord)]
        for one in refused:
            await self._to_letters(one)
        left, error = await self._publish([one for one in records if isinstance(one, Record)])
        if error is not None:
            if len(left) == len(records):
                raise DependencyUnavailable(f"Kafka takes no events: {error!r}", "Check the broker: ratchet status")
            logger.warning("Kafka did not take %d of %d events: %r", len(left), len(records), error)
        else:
            self._status.error = ""
        return left

    async def close(self) -> None:
        """Let go of the connections. What was not acknowledged is still in the spool."""
        if (producer := self._producer) is not None:
            self._producer = None
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(producer.stop(), _CLOSING_SECONDS)

    async def _publish(self, records: Sequence[Record]) -> tuple[list[Record | RefusedRecord], BaseException | None]:
        """What Kafka did not take, in order, and why not."""
        if not records:
            return [], None
        futures: list[asyncio.Future[object]] = []
        error: BaseException | None = None
        large: list[Record] = []
        sent: list[Record] = []
        unsent: list[Record] = []
        producer = await self._started()
        for number, record in enumerate(records):
            try:
                headers = [_JSON, *record.headers]
                futures.append(await producer.send(record.topic, record.value, key=record.key, headers=headers))
                sent.append(record)
            except _TOO_LARGE:
                large.append(record)
            except (KafkaError, OSError) as failure:
                error = failure
                unsent = list(records[number:])
                break
        await self._all_done(futures)
        failed: list[Record | RefusedRecord] = []
        for record, future in zip(sent, futures, strict=True):
            if (reason := future.exception()) is None:
                self._status.shipped[record.topic] += 1
            elif isinstance(reason, _TOO_LARGE):
                large.append(record)
            elif isinstance(reason, KafkaError | OSError):
                error = reason
                failed.append(record)
            else:
                raise reason
        for record in large:
            await self._alone(record, len(sent) == 1)
        if error is not None:
            await self.close()  # An idempotent producer may not go on after a failure: the next try has a new one.
        return [*failed, *unsent], error

    async def _alone(self, record: Record, was_alone: bool) -> None:
        """A batch that was too large is refused whole: each of its records is tried for itself, then buried."""
        if not was_alone:
            producer = await self._started()
            with contextlib.suppress(*_TOO_LARGE):
                headers = [_JSON, *record.headers]
                await producer.send_and_wait(record.topic, record.value, key=record.key, headers=headers)
                self._status.shipped[record.topic] += 1
                return
        reason = f"Kafka takes no event of {len(record.value)} bytes on {record.topic}"
        await self._to_letters(RefusedRecord(record, InvalidMessage(reason)))

    async def _to_letters(self, refused: RefusedRecord) -> None:
        try:
            await self._bury(refused.record, refused.error)
        except DependencyUnavailable as failure:
            if not isinstance(failure.__cause__, _TOO_LARGE):
                raise
            path = self._aside(refused.record)
            logger.error(
                "%s: %s, not even as a dead letter: it lies sealed in %s", refused.record.topic, refused.error, path
            )
        self._status.buried += 1

    async def _all_done(self, futures: Sequence[asyncio.Future[object]]) -> None:
        """Wait for acknowledgements. aiokafka settles each in the end, be the broker away for hours."""
        waiting: set[asyncio.Future[object]] = set(futures)
        while waiting:
            _, waiting = await asyncio.wait(waiting, timeout=_NEWS_SECONDS)
            if waiting:
                self._status.error = f"Kafka has not acknowledged {len(waiting)} events yet"

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    client_id="ratchet-gateway-shipper", linger_ms=_LINGER_MS, max_batch_size=_BATCH_BYTES,
                    partitioner=_partition,
                    **client_options(self._settings), **producer_options(self._settings),
                )  # fmt: skip
                try:
                    await producer.start()
                except (KafkaError, OSError) as error:
                    with contextlib.suppress(KafkaError, OSError):
                        await producer.stop()
                    raise DependencyUnavailable(
                        f"no Kafka broker answers at {self._settings.kafka}: {error!r}", "Check it: ratchet status"
                    ) from error
                self._producer = producer
            return self._producer
