"""Publishes batches of records to Kafka: sent without waiting for each, done when all are acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
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
"""Of one partition, before compression; Kafka's usual limit is 1 MB."""
_ACKNOWLEDGEMENT_REPORT_SECONDS = 5.0
_CLOSE_TIMEOUT_SECONDS = 3.0
_MAX_BACKOFF_SECONDS = 2.0
"""Between two attempts while the broker is unavailable."""

logger = logging.getLogger(__name__)


@lru_cache(maxsize=64)
def _hash(key: bytes) -> int:
    """Kafka's hash of a key. It is a third of the cost of sending, so it is cached for a request's other events."""
    return cast(int, murmur2(key)) & 0x7FFFFFFF


def _partition(key: bytes, partitions: list[int], _: list[int]) -> int:
    """The same partition that every other Kafka client chooses for this key."""
    return partitions[_hash(key) % len(partitions)]


DeadLetter = Callable[[Record, Exception], Awaitable[None]]


class BatchPublisher:
    """Publishes through one producer, which is idempotent if the broker supports it."""

    def __init__(self, settings: Settings, dead_letter: DeadLetter, status: ShipperStatus) -> None:
        self._settings = settings
        self._dead_letter = dead_letter
        self._status = status
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._publishing = asyncio.Lock()

    async def publish(self, records: Sequence[Record | RefusedRecord]) -> None:
        """Publish every record or its dead letter; retry for as long as the broker is unavailable."""
        unpublished = list(records)
        backoff = 0.2
        while unpublished:
            try:
                unpublished = await self.publish_once(unpublished)
            except DependencyUnavailable as error:
                self._status.error = error.reason
                logger.warning("%s; retrying in %.1f s", error.reason, backoff)
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)

    async def publish_once(self, records: Sequence[Record | RefusedRecord]) -> list[Record | RefusedRecord]:
        """Try once; return the records to retry. Raises DependencyUnavailable if none was published.

        One batch at a time: a batch that fails closes the producer.
        """
        async with self._publishing:
            return await self._publish_once(records)

    async def _publish_once(self, records: Sequence[Record | RefusedRecord]) -> list[Record | RefusedRecord]:
        for record in records:
            if isinstance(record, RefusedRecord):
                await self._publish_dead_letter(record)
        failed, error = await self._send_batch([record for record in records if isinstance(record, Record)])
        if error is not None:
            if len(failed) == len(records):
                raise DependencyUnavailable(f"Kafka unavailable: {error!r}", "Check the broker: ratchet status")
            logger.warning("Kafka did not accept %d of %d events: %r", len(failed), len(records), error)
        else:
            self._status.error = ""
        return failed

    async def close(self) -> None:
        """Close the connections. Records that were not acknowledged are still in the spool."""
        if (producer := self._producer) is not None:
            self._producer = None
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(producer.stop(), _CLOSE_TIMEOUT_SECONDS)

    async def _send_batch(self, records: Sequence[Record]) -> tuple[list[Record | RefusedRecord], BaseException | None]:
        """Send the records; return those that failed, in order, and the error."""
        if not records:
            return [], None
        futures: list[asyncio.Future[object]] = []
        error: BaseException | None = None
        too_large: list[Record] = []
        sent: list[Record] = []
        unsent: list[Record] = []
        producer = await self._started_producer()
        for number, record in enumerate(records):
            try:
                headers = [_JSON, *record.headers]
                futures.append(await producer.send(record.topic, record.value, key=record.key, headers=headers))
                sent.append(record)
            except _TOO_LARGE:
                too_large.append(record)
            except (KafkaError, OSError) as failure:
                error = failure
                unsent = list(records[number:])
                break
        await self._wait_until_acknowledged(futures)
        failed: list[Record | RefusedRecord] = []
        for record, future in zip(sent, futures, strict=True):
            if (reason := future.exception()) is None:
                self._status.shipped[record.topic] += 1
            elif isinstance(reason, _TOO_LARGE):
                too_large.append(record)
            elif isinstance(reason, KafkaError | OSError):
                error = reason
                failed.append(record)
            else:
                raise reason
        for record in too_large:
            await self._send_alone(record, len(sent) == 1)
        if error is not None:
            await self.close()  # An idempotent producer cannot continue after a failure; a new one is started.
        return [*failed, *unsent], error

    async def _send_alone(self, record: Record, was_alone: bool) -> None:
        """Send a record of a batch that was too large on its own; dead-letter it if it alone is too large."""
        if not was_alone:
            producer = await self._started_producer()
            with contextlib.suppress(*_TOO_LARGE):
                headers = [_JSON, *record.headers]
                await producer.send_and_wait(record.topic, record.value, key=record.key, headers=headers)
                self._status.shipped[record.topic] += 1
                return
        reason = f"an event of {len(record.value)} bytes is too large for {record.topic}"
        await self._publish_dead_letter(RefusedRecord(record, InvalidMessage(reason)))

    async def _publish_dead_letter(self, refused: RefusedRecord) -> None:
        await self._dead_letter(refused.record, refused.error)
        self._status.dead_lettered += 1

    async def _wait_until_acknowledged(self, futures: Sequence[asyncio.Future[object]]) -> None:
        """Wait until every future is done. aiokafka settles each in the end, even after hours without a broker."""
        waiting: set[asyncio.Future[object]] = set(futures)
        while waiting:
            _, waiting = await asyncio.wait(waiting, timeout=_ACKNOWLEDGEMENT_REPORT_SECONDS)
            if waiting:
                self._status.error = f"waiting for Kafka to acknowledge {len(waiting)} events"

    async def _started_producer(self) -> AIOKafkaProducer:
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
                        f"Kafka unavailable at {self._settings.kafka}: {error!r}", "Check it: ratchet status"
                    ) from error
                self._producer = producer
            return self._producer
