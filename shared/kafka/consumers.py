"""What a service consumes: its handlers, subscribed with the one right policy.

From the earliest record, acknowledged after the handler, retried with backoff while a dependency is away, and
dead-lettered when a message can never succeed, so that a poison message never blocks its partition.

FastStream's own defaults (acknowledge first, start at the latest record) lose messages: that is why no service calls
`broker.subscriber` itself (a contract test checks this).
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage

from schemas.base import Event
from schemas.catalog import HEADER_ONLY, HEADER_REPLAYED, topic_of
from shared.errors import DependencyUnavailable, InvalidMessage, MustStop, Paused
from shared.kafka.broker import Broker, leave_undecoded, parse_with_trace, parse_without_headers
from shared.kafka.clients import MAX_MESSAGE_BYTES, end_offsets
from shared.kafka.delivery import (
    Delivery,
    RecordPosition,
    TopicPartition,
    decode_event,
    record_headers,
    record_size,
    split_records,
)
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import DeadLetterPublisher
from shared.kafka.resuming import Resume, ResumingListener
from shared.settings import Settings
from shared.tasks import ENDINGS

ATTEMPTS = 6
"""How often a message is tried while a dependency is away, before it is redelivered: half a minute with its pauses."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.2, 10.0
"""The pause doubles from one attempt to the next, up to the second."""
# How often a message is tried whose handler raises an unexpected error, before it is dead-lettered.
BUG_ATTEMPTS = 3
# What is decoded before the event loop runs other tasks: heartbeats, and the process's other services. A small record
# takes as long as this many bytes of a large one.
_BYTES_PER_YIELD, _BYTES_PER_RECORD = 4 * 1024 * 1024, 4 * 1024

E = TypeVar("E", bound=Event)
logger = logging.getLogger(__name__)

Handler = Callable[[E], Awaitable[None]]
BatchHandler = Callable[[list[Delivery[E]]], Awaitable[None]]
OnSkipped = Callable[[RecordPosition], Awaitable[None]]
Decode = Callable[[bytes], Any]


@dataclass(frozen=True)
class BatchOptions:
    """How large a batch becomes: what the broker has, up to `max_records` and to `max_bytes` of values, or one record.

    The broker holds its answer back until it has `min_bytes` (compressed), but no longer than `wait_ms`. `max_seconds`:
    what a batch may take, all attempts together, before its partitions are given to another process.
    """

    max_records: int = 500
    wait_ms: int = 200
    min_bytes: int = 1
    max_bytes: int = 32 * 1024 * 1024
    max_seconds: float = 300.0


_DEFAULT_BATCH = BatchOptions()


class Consumers:
    """A service's subscriptions on a broker."""

    def __init__(self, broker: KafkaBroker, service: str, settings: Settings) -> None:
        self._broker = broker
        self._service = service
        self._settings = settings
        self._parser = parse_with_trace if settings.otlp_endpoint else parse_without_headers
        self._dead_letters = DeadLetterPublisher(broker, service, settings)
        self._dead_lettered: set[RecordPosition] = set()
        """Of the batches that are not handled yet."""

    def on(self, event: type[E], handler: Handler[E]) -> None:
        """Subscribe a handler of one event at a time."""

        async def handle(deliveries: list[Delivery[E]]) -> None:
            await handler(deliveries[0].event)

        async def consume(body: Any, message: KafkaMessage) -> None:
            await self._consume(event, handle, [message.raw_message])

        self._subscribe(event, consume, batch=False)

    def on_batch(
        self,
        event: type[E],
        handler: BatchHandler[E],
        batch: BatchOptions = _DEFAULT_BATCH,
        *,
        on_skipped: OnSkipped | None = None,
        resume: Resume | None = None,
        decode: Decode | None = None,
    ) -> None:
        """Subscribe a handler of many events at once; all of them are acknowledged together, after it returns.

        `on_skipped` is called for each record that the handler is not given, because it was dead-lettered or was
        replayed for another service, and for the last of those that the broker deleted before the store had read them:
        a store of offsets must move past it, or a cycle whose fence lies behind it would wait forever. `resume` is
        asked, at each assignment, from which offsets the store that the handler fills needs the records
        (shared/kafka/resuming.py). `decode` makes the deliveries' events from the records' values instead of the
        event's class (shared/kafka/decoding.py); it raises InvalidMessage.
        """
        name, ends = f"{self._service}: {topic_of(event).name}", partial(end_offsets, self._settings)
        listener = ResumingListener(name, resume, ends, self._halt, on_skipped) if resume else None

        async def consume(body: Any, message: KafkaMessage) -> None:
            raw = message.raw_message
            records = raw if isinstance(raw, tuple | list) else (raw,)
            generation = listener.generation if listener else 0
            if listener and not listener.expects(first := _last_offsets(records[::-1])):
                await message.nack()  # Its own seek, to these records: before the other, which it would undo.
                listener.seek_again(first)
                raise DependencyUnavailable("records arrived below the offset already read; seeking again")
            for part in split_records(records, batch.max_bytes):
                await self._consume(event, handler, part, on_skipped, decode)
            if listener:
                listener.handled(_last_offsets(records), generation)

        options = {
            "max_records": batch.max_records, "batch_timeout_ms": batch.wait_ms, "fetch_max_wait_ms": batch.wait_ms,
            "fetch_min_bytes": batch.min_bytes, "max_poll_interval_ms": round(1_000 * batch.max_seconds),
        }  # fmt: skip
        subscriber = self._subscribe(event, consume, batch=True, listener=listener, **options)
        if listener:
            listener.subscriber = subscriber

    def table(self, event: type[E], on_value: Handler[E] | None = None, *, on_older: bool = False) -> LatestByKey[E]:
        """Follow a compacted topic from its start, in every process, as a table of its last value per key.

        `on_value` is called with every value, after it is in the table, and again at each start. While what it needs is
        away (DependencyUnavailable), later values wait.
        Nothing is acknowledged (there is no consumer group): each process reads the whole topic anew. A replayed dead
        letter that is older than the table's value changes nothing of it; `on_older`: `on_value` is called with it all
        the same, for who keeps all values.
        """
        topic = self._consumed_topic(event)
        table: LatestByKey[E] = LatestByKey(topic)

        async def put(deliveries: list[Delivery[E]]) -> None:
            value, newest = deliveries[0].event, table.get(deliveries[0].event.task)
            if HEADER_REPLAYED in deliveries[0].headers and newest and newest.occurred_at > value.occurred_at:
                if on_value is not None and on_older:
                    await on_value(value)
                return
            await table.put(value.task, value)
            if on_value is not None:
                await on_value(value)

        async def consume(body: Any, message: KafkaMessage) -> None:
            record: Any = message.raw_message
            while True:
                try:
                    await self._consume(event, put, [record])
                    break
                except DependencyUnavailable as error:  # No group, so nothing redelivers it before the next start.
                    self._log_retry(error, f"{topic} is tried again")
                    await asyncio.sleep(FIRST_PAUSE_SECONDS)
            await table.advance(record.partition, record.offset + 1)

        self._broker.subscriber(
            topic,
            group_id=None,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.ACK_FIRST,
            parser=self._parser,
            decoder=leave_undecoded,
            no_reply=True,
        )(consume)
        return table

    def _consumed_topic(self, event: type[E]) -> str:
        topic = topic_of(event)
        if self._service not in topic.consumers:
            raise ValueError(f"{self._service} is not a consumer of {topic.name}: see schemas/catalog.py")
        return topic.name

    def _halt(self, problem: MustStop) -> None:
        logger.critical("%s must stop: %s %s", self._service, problem.reason, problem.way_out)
        if isinstance(self._broker, Broker):
            self._broker.halt(problem)

    def _subscribe(self, event: type[E], consume: Callable[..., Awaitable[None]], **options: Any) -> Any:
        topic = self._consumed_topic(event)

        async def consume_unless_halted(body: Any, message: KafkaMessage) -> None:
            if isinstance(self._broker, Broker) and self._broker.problem:
                _pause(message)
                raise self._broker.problem
            try:
                await consume(body, message)
            except MustStop as problem:
                _pause(message)
                self._halt(problem)
                raise
            except Exception as error:  # Logged here, since FastStream's own log is off; raised for the redelivery.
                self._log_retry(error, f"{topic} is redelivered")
                await asyncio.sleep(FIRST_PAUSE_SECONDS)  # What fails at once must not spin.
                raise

        subscriber = self._broker.subscriber(
            topic,
            group_id=f"ratchet.{self._service}.{topic}",
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            parser=self._parser,
            decoder=leave_undecoded,
            no_reply=True,
            session_timeout_ms=10_000,
            # tansu writes the group's state to its object store at each heartbeat.
            heartbeat_interval_ms=1_000 if self._settings.kafka_idempotence else 3_000,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
            **options,
        )
        subscriber(consume_unless_halted)
        return subscriber

    async def _consume(
        self,
        event: type[E],
        handler: BatchHandler[E],
        records: Sequence[ConsumerRecord],
        on_skipped: OnSkipped | None = None,
        decode: Decode | None = None,
    ) -> None:
        """Decode, call the handler, dead-letter what can never succeed. Raises only what must be redelivered.

        What is not decoded is dead-lettered before the others are handled: a store of its own offsets moves past it
        with them, and would never read it again. It is skipped after them: a store that moved past it, and past those
        before it, would never read those again. While one waits, all are redelivered, and no dead letter is repeated.
        """
        decoded: list[tuple[ConsumerRecord, Delivery[E]]] = []
        skipped: list[tuple[ConsumerRecord, Exception | None]] = []
        waiting = 0
        for record in records:
            waiting += record_size(record) + _BYTES_PER_RECORD
            if waiting > _BYTES_PER_YIELD:
                waiting = 0
                await asyncio.sleep(0)
            headers = record_headers(record)
            if headers.get(HEADER_ONLY, self._service) != self._service:  # Replayed for another service.
                skipped.append((record, None))
                continue
            try:
                value = record.value or b""
                decoded_event = decode(value) if decode else decode_event(event, value)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not block the partition
                skipped.append((record, error))
                continue
            position = record.topic, record.partition, record.offset
            decoded.append((record, Delivery(decoded_event, *position, headers, record.timestamp)))
        for record, failure in skipped:
            if failure is not None and _position(record) not in self._dead_lettered:
                await self._dead_letters.publish_record(record, failure)
                self._dead_lettered.add(_position(record))
        if decoded:
            await self._handle(handler, decoded, on_skipped)
        for record, _ in skipped:
            if on_skipped is not None:
                await on_skipped(_position(record))
            self._dead_lettered.discard(_position(record))

    async def _handle(
        self,
        handler: BatchHandler[E],
        records: list[tuple[ConsumerRecord, Delivery[E]]],
        on_skipped: OnSkipped | None,
        attempts: int = BUG_ATTEMPTS,
    ) -> None:
        try:
            await self._attempt(handler, [delivery for _, delivery in records], attempts)
        except (DependencyUnavailable, MustStop):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not block the partition
            if len(records) == 1:
                record = records[0][0]
                await self._dead_letters.publish_record(record, error)
                if on_skipped is not None:
                    await on_skipped(_position(record))
                return
            # Which record is the bad one? Handlers are idempotent: each half is tried alone, since an attempt may cost
            # as much for one record as for thousands. One attempt is enough where the batch had several: pauses for
            # hundreds of records would outlast the group's session timeout.
            attempts = attempts if isinstance(error, InvalidMessage) else 1
            middle = len(records) // 2
            for half in (records[:middle], records[middle:]):
                await self._handle(handler, half, on_skipped, attempts)

    async def _attempt(self, handler: BatchHandler[E], deliveries: list[Delivery[E]], attempts: int) -> None:
        """Call the handler until it succeeds; raise the error of the last attempt."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await _called(handler, deliveries)
            except (InvalidMessage, MustStop, Paused):
                raise
            except Exception as error:  # Raised again below after the last attempt.
                unavailable = isinstance(error, DependencyUnavailable)
                if attempt >= (ATTEMPTS if unavailable else attempts):
                    raise
                pause = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), MAX_PAUSE_SECONDS)
                self._log_retry(error, f"attempt {attempt} of {deliveries[0].topic} failed, retrying in {pause:.1f} s")
                await asyncio.sleep(pause)

    def _log_retry(self, error: Exception, what: str) -> None:
        """Log what is retried. The text of an unexpected error may quote a message: only its type and place go out."""
        if isinstance(error, DependencyUnavailable):
            level = logging.DEBUG if isinstance(error, Paused) else logging.INFO
            logger.log(level, "%s: %s: %s", self._service, what, error)
        else:
            trace = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s: %s: %s\n%s", self._service, what, type(error).__name__, trace)


async def _called(handler: BatchHandler[E], deliveries: list[Delivery[E]]) -> None:
    """Call the handler. A panic of Rust is an error like another: it is no Exception, and would end the consumer."""
    try:
        await handler(deliveries)
    except (Exception, *ENDINGS):
        raise
    except BaseException as panic:
        raise RuntimeError(f"{type(panic).__name__}: {panic}") from panic


def _position(record: ConsumerRecord) -> RecordPosition:
    return RecordPosition(record.topic, record.partition, record.offset)


def _last_offsets(records: Sequence[ConsumerRecord]) -> dict[TopicPartition, int]:
    offsets = {(record.topic, record.partition): record.offset for record in records}
    return {TopicPartition(*partition): offset for partition, offset in offsets.items()}  # Made here: they are slow.


def _pause(message: KafkaMessage) -> None:
    """Deliver nothing more to this subscription: the refused records would come back at once, again and again."""
    if isinstance(message.consumer, AIOKafkaConsumer):
        message.consumer.pause(*message.consumer.assignment())
