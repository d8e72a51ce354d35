"""Publishes batches of records to Kafka: sent without waiting for each, done when all are acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.shipper.batches import SentBatch, headers_of, partition_of, send_batches
from services.gateway.shipper.redaction import RefusedRecord
from shared.errors import ConfigurationError, DependencyUnavailable, InvalidMessage
from shared.kafka.clients import client_options, producer_options, start_producer
from shared.settings import Settings
from shared.spool import Record

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_BATCH_BYTES = 256 * 1024
"""Of one partition, before compression; Kafka's usual limit is 1 MB."""
_ACKNOWLEDGEMENT_REPORT_SECONDS = 5.0
_CLOSE_TIMEOUT_SECONDS = 3.0
_MAX_BACKOFF_SECONDS = 2.0
"""Between two attempts while the broker is unavailable."""

logger = logging.getLogger(__name__)


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

        Dead letters come once all records are published: a consumer whose batch is redelivered does not repeat them.
        One batch at a time: a batch that fails closes the producer.
        """
        async with self._publishing:
            return await self._publish_once(records)

    async def _publish_once(self, records: Sequence[Record | RefusedRecord]) -> list[Record | RefusedRecord]:
        refused = [record for record in records if isinstance(record, RefusedRecord)]
        failed, too_large, error = await self._send([record for record in records if isinstance(record, Record)])
        refused += too_large
        if error is None:
            refused, error = await self._publish_dead_letters(refused)
        left: list[Record | RefusedRecord] = [*failed, *refused]
        if error is None:
            self._status.error = ""
        elif len(left) < len(records):
            logger.warning("Kafka did not accept %d of %d events: %r", len(left), len(records), error)
        elif isinstance(error, DependencyUnavailable):
            raise error
        else:
            raise DependencyUnavailable(f"Kafka unavailable: {error!r}", "Check the broker: ratchet status")
        return left

    async def close(self) -> None:
        """Close the connections. Records that were not acknowledged are still in the spool."""
        if (producer := self._producer) is not None:
            self._producer = None
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                    await producer.stop()

    async def _send(self, records: Sequence[Record]) -> tuple[list[Record], list[RefusedRecord], BaseException | None]:
        """Send the records; return those that failed, those of a partition in order, those that are too large, and the
        error of the former."""
        if not records:
            return [], [], None
        try:
            batches, unsent, error = await send_batches(await self._started_producer(), records)
        except DependencyUnavailable as unavailable:
            return list(records), [], unavailable
        await self._wait_until_acknowledged([batch.acknowledged for batch in batches])
        failed: list[Record] = []
        too_large: list[SentBatch] = []
        for batch in batches:
            if (reason := batch.acknowledged.exception()) is None:
                self._status.shipped[batch.records[0].topic] += len(batch.records)
            elif isinstance(reason, _TOO_LARGE):
                too_large.append(batch)
            elif isinstance(reason, KafkaError | OSError):
                error = reason
                failed += batch.records
            else:
                raise reason
        refused: list[RefusedRecord] = []
        for batch in too_large:
            for record in batch.records:
                if error is None:
                    error = await self._send_alone(record, len(batch.records) == 1, refused)
                if error is not None:
                    failed.append(record)
        if error is not None:
            await self.close()  # An idempotent producer cannot continue after a failure; a new one is started.
        return [*failed, *unsent], refused, error

    async def _send_alone(
        self, record: Record, was_alone: bool, refused: list[RefusedRecord]
    ) -> KafkaError | OSError | DependencyUnavailable | None:
        """Send a record of a batch that was too large on its own; if it alone is, it is added to `refused`. Returns
        another error of Kafka."""
        try:
            if not was_alone:
                producer, headers = await self._started_producer(), headers_of(record)
                await producer.send_and_wait(record.topic, record.value, key=record.key, headers=headers)
                self._status.shipped[record.topic] += 1
                return None
        except _TOO_LARGE:
            pass
        except (KafkaError, OSError, DependencyUnavailable) as error:
            return error
        reason = f"an event of {len(record.value)} bytes is too large for {record.topic}"
        refused.append(RefusedRecord(record, InvalidMessage(reason)))
        return None

    async def _publish_dead_letters(
        self, refused: Sequence[RefusedRecord]
    ) -> tuple[list[RefusedRecord], DependencyUnavailable | None]:
        """Publish dead letters in order; return those that are left, and the error."""
        for number, each in enumerate(refused):
            try:
                await self._dead_letter(each.record, each.error)
            except DependencyUnavailable as error:
                return list(refused[number:]), error
            self._status.dead_lettered += 1
        return [], None

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
                    client_id="ratchet-gateway-shipper", max_batch_size=_BATCH_BYTES, partitioner=partition_of,
                    **client_options(self._settings), **producer_options(self._settings),
                )  # fmt: skip
                try:
                    await start_producer(producer, self._settings)
                except ConfigurationError as error:  # Events wait until it is corrected.
                    raise DependencyUnavailable(error.reason, error.way_out) from error
                self._producer = producer
            return self._producer
