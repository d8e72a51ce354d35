"""Kafka in and out, once, for every service.

`Consumers` subscribes a service's handlers with the one right policy: from the earliest record, acknowledged after
the handler, retried with backoff while a dependency is away, dead-lettered when a message can never succeed, so that
a poison message never blocks its partition. `Publisher` sends an event to the topic that the catalog names for it.

FastStream's own defaults (acknowledge first, start at latest) lose messages: that is why no service calls
`broker.subscriber` itself (a contract test holds this).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from pydantic import ValidationError

from schemas import deadletters as dl
from schemas.base import Event, utc_now
from schemas.catalog import key_of, topic_of
from shared.delivery import Delivery as Delivery
from shared.delivery import Place as Place
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.settings import Settings
from shared.tables import LatestByKey

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_PAUSE_SECONDS = 10.0
BUG_ATTEMPTS = 3
"""Tries of a message whose handler raises something unforeseen, before it is taken for poison."""

E = TypeVar("E", bound=Event)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Record:
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, str]


Handler = Callable[[E], Awaitable[None]]
BatchHandler = Callable[[list[Delivery[E]]], Awaitable[None]]
PassedOver = Callable[[Place], Awaitable[None]]


class _Broker(KafkaBroker):
    """Starts its subscribers side by side: a broker may let each wait for its group (tansu: five seconds)."""

    async def start(self) -> None:
        """Connect and subscribe. After a failure it may be called again: what was started stays so."""
        await self.connect()
        waiting = [subscriber.start() for subscriber in self.subscribers if not subscriber.running]
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        self.running = True


def build_broker(settings: Settings, service: str) -> KafkaBroker:
    """A broker whose producer waits for all replicas. It connects on `start()`, not here."""
    return _Broker(
        [server.strip() for server in settings.kafka.split(",")],
        client_id=f"ratchet-{service}",
        acks="all",
        enable_idempotence=settings.kafka_idempotence,
        max_request_size=MAX_MESSAGE_BYTES,
        allow_auto_create_topics=False,
        logger=None,
    )


class Publishes(Protocol):
    """What a handler needs of a publisher."""

    async def publish(self, event: Event) -> None: ...


class Publisher:
    """Publishes a service's events, each to its topic, keyed as the catalog says."""

    def __init__(self, broker: KafkaBroker, service: str) -> None:
        self._broker = broker
        self._service = service

    async def publish(self, event: Event) -> None:
        """Returns when all replicas have the event. Raises DependencyUnavailable while the broker is away."""
        topic = topic_of(type(event))
        if self._service not in topic.producers:
            raise ValueError(f"{self._service} is not a producer of {topic.name}: see schemas/catalog.py")
        await _send(self._broker, topic.name, key_of(event).encode(), event.model_dump_json().encode(), {})


class Consumers:
    """A service's subscriptions on a broker."""

    def __init__(self, broker: KafkaBroker, service: str, settings: Settings) -> None:
        self._broker = broker
        self._service = service
        self._settings = settings

    def on(self, event: type[E], handler: Handler[E]) -> None:
        """Subscribe a handler of one event at a time."""

        async def handle(deliveries: list[Delivery[E]]) -> None:
            await handler(deliveries[0].event)

        async def consume(body: Any, message: KafkaMessage) -> None:
            await self._consume(event, handle, [_record(message.raw_message)])

        self._subscribe(event, consume, batch=False)

    def on_batch(
        self,
        event: type[E],
        handler: BatchHandler[E],
        *,
        max_records: int = 500,
        wait_ms: int = 200,
        on_passed_over: PassedOver | None = None,
    ) -> None:
        """Subscribe a handler of many events at once; all of them are acknowledged together, after it returns.

        `on_passed_over` hears of each record that the handler is not given, because it is a dead letter or was
        replayed for another service: who keeps positions must move past it, or a cycle whose fence lies behind it
        would wait forever.
        """

        async def consume(body: Any, message: KafkaMessage) -> None:
            raw = message.raw_message
            records = [_record(item) for item in (raw if isinstance(raw, tuple | list) else (raw,))]
            await self._consume(event, handler, records, on_passed_over)

        self._subscribe(event, consume, batch=True, max_records=max_records, batch_timeout_ms=wait_ms)

    def table(self, event: type[E]) -> LatestByKey[E]:
        """Follow a compacted topic from its start, in every process: its last value per key is the truth.

        Nothing is acknowledged (there is no consumer group): each process reads the whole topic anew.
        """
        topic = self._checked_topic(event)
        table: LatestByKey[E] = LatestByKey(topic)

        async def put(deliveries: list[Delivery[E]]) -> None:
            for delivery in deliveries:
                await table.put(delivery.event.task, delivery.event)

        async def consume(body: Any, message: KafkaMessage) -> None:
            await self._consume(event, put, [_record(message.raw_message)])

        self._broker.subscriber(
            topic, group_id=None, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK_FIRST, decoder=_undecoded
        )(consume)
        return table

    def _checked_topic(self, event: type[E]) -> str:
        topic = topic_of(event)
        if self._service not in topic.consumers:
            raise ValueError(f"{self._service} is not a consumer of {topic.name}: see schemas/catalog.py")
        return topic.name

    def _subscribe(self, event: type[E], consume: Callable[..., Awaitable[None]], **options: Any) -> None:
        topic = self._checked_topic(event)
        self._broker.subscriber(
            topic,
            group_id=f"ratchet.{self._service}.{topic}",
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            decoder=_undecoded,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
            **options,
        )(consume)

    async def _consume(
        self,
        event: type[E],
        handler: BatchHandler[E],
        records: Sequence[_Record],
        on_passed_over: PassedOver | None = None,
    ) -> None:
        """Decode, hand over, bury what can never succeed. Raises only what must be redelivered."""
        sound: list[tuple[_Record, Delivery[E]]] = []
        for record in records:
            if record.headers.get(dl.HEADER_ONLY, self._service) != self._service:
                # Replayed from the dead letters of another service.
                if on_passed_over is not None:
                    await on_passed_over(Place(record.topic, record.partition, record.offset))
                continue
            try:
                decoded = _decode(event, record.value)
            except InvalidMessage as error:
                await self._bury(record, error, on_passed_over)
                continue
            place = (record.topic, record.partition, record.offset, record.headers)
            sound.append((record, Delivery(decoded, *place)))
        if sound:
            await self._hand_over(handler, sound, on_passed_over)

    async def _hand_over(
        self, handler: BatchHandler[E], sound: list[tuple[_Record, Delivery[E]]], on_passed_over: PassedOver | None
    ) -> None:
        try:
            await self._attempt(handler, [delivery for _, delivery in sound])
        except DependencyUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not block the partition
            if len(sound) == 1:
                await self._bury(sound[0][0], error, on_passed_over)
                return
            for one in sound:  # Which of them is the bad one? Handlers are idempotent: each is tried alone.
                await self._hand_over(handler, [one], on_passed_over)

    async def _attempt(self, handler: BatchHandler[E], deliveries: list[Delivery[E]]) -> None:
        """Call until it succeeds, or raise what it raised at last."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await handler(deliveries)
            except InvalidMessage:
                raise
            except Exception as error:  # Raised again below once it was tried often enough.
                away = isinstance(error, DependencyUnavailable)
                if attempt >= (self._settings.retry_attempts if away else BUG_ATTEMPTS):
                    raise
                pause = min(self._settings.retry_base_seconds * 2 ** (attempt - 1), MAX_PAUSE_SECONDS)
                logger.log(
                    logging.INFO if away else logging.ERROR,
                    "%s: try %d of %s failed, again in %.1f s: %s",
                    self._service, attempt, deliveries[0].topic, pause, error,
                    exc_info=None if away else error,
                )  # fmt: skip
                await asyncio.sleep(pause)

    async def _bury(self, record: _Record, error: Exception, on_passed_over: PassedOver | None = None) -> None:
        """Keep the raw record, with where it lay and why it failed, in the service's dead-letter topic."""
        logger.error("%s: dead letter from %s: %s", self._service, record.topic, error)
        headers = {
            dl.HEADER_TOPIC: record.topic,
            dl.HEADER_PARTITION: str(record.partition),
            dl.HEADER_OFFSET: str(record.offset),
            dl.HEADER_SERVICE: self._service,
            dl.HEADER_ERROR: f"{type(error).__name__}: {error}"[:2_000],
            dl.HEADER_FAILED_AT: utc_now().isoformat(),
            dl.HEADER_REPLAYED: record.headers.get(dl.HEADER_REPLAYED, "0"),
        }
        topic = dl.dead_letter_topic(self._service)
        await _send(self._broker, topic, record.key, record.value, headers)
        if on_passed_over is not None:
            await on_passed_over(Place(record.topic, record.partition, record.offset))


async def _send(broker: KafkaBroker, topic: str, key: bytes | None, value: bytes, headers: dict[str, str]) -> None:
    try:
        await broker.publish(value, topic, key=key, headers={"content-type": "application/json", **headers})
    except (KafkaError, ConnectionError, TimeoutError) as error:
        raise DependencyUnavailable(
            f"Kafka did not take a record for {topic}: {error!r}", "Check the broker: ratchet status"
        ) from error


def _decode(event: type[E], value: bytes) -> E:
    try:
        return event.model_validate_json(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise InvalidMessage(f"not a valid {event.__name__}: {problems}") from error


def _record(raw: Any) -> _Record:
    headers = {name: value.decode(errors="replace") for name, value in (raw.headers or ())}
    return _Record(raw.topic, raw.partition, raw.offset, raw.key, raw.value or b"", headers)


async def _undecoded(message: KafkaMessage) -> Any:
    """Leave the body as it came: decoding is ours, so that malformed JSON reaches the dead letters too."""
    return message.body
