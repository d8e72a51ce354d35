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
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from pydantic import ValidationError

from schemas import deadletters as dl
from schemas.base import Event
from schemas.catalog import key_of, topic_of
from shared.errors import DependencyUnavailable, InvalidMessage, MustStop
from shared.kafka.clients import MAX_MESSAGE_BYTES, broker_options, read_ends, unreachable
from shared.kafka.dead_letters import SEAL_NAME, seal_letter
from shared.kafka.delivery import Delivery as Delivery
from shared.kafka.delivery import Place as Place
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.resuming import Resume, Resuming
from shared.privacy.encryption import Cipher, load_cipher
from shared.settings import Settings
from shared.tracing import Carried, carried_by, consumer_middlewares, letter_headers

MAX_PAUSE_SECONDS = 10.0
BUG_ATTEMPTS = 3
"""Tries of a message whose handler raises something unforeseen, before it is taken for poison."""

_BREATH = 1_000
"""Records decoded before the event loop gets a turn: heartbeats, and the other services of the process."""
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

E = TypeVar("E", bound=Event)
logger = logging.getLogger(__name__)


Handler = Callable[[E], Awaitable[None]]
BatchHandler = Callable[[list[Delivery[E]]], Awaitable[None]]
PassedOver = Callable[[Place], Awaitable[None]]
Decode = Callable[[bytes], Any]


class Broker(KafkaBroker):
    """Starts its subscribers side by side: a broker may let each wait for its group (tansu: five seconds).

    What must stop the process is kept here, for who runs the service: `halted` waits for it.
    """

    problem: MustStop | None = None
    settings: Settings

    def halt(self, problem: MustStop) -> None:
        """Have the process stop. The first problem stays: what comes after it may be its consequence."""
        self.problem = self.problem or problem
        self._halted.set()

    async def halted(self) -> MustStop:
        """Wait until a handler or a store says that going on would lose or double data."""
        while self.problem is None:
            await self._halted.wait()
        return self.problem

    @cached_property
    def _halted(self) -> asyncio.Event:
        return asyncio.Event()

    async def start(self) -> None:
        """Connect and subscribe. After a failure it may be called again: what was started stays so.

        Raises DependencyUnavailable when no broker answers, ConfigurationError when one refuses us.
        """
        try:
            await self.connect()
        except (KafkaError, OSError) as error:
            raise await unreachable(self.settings, error) from error
        waiting = [subscriber.start() for subscriber in self.subscribers if not subscriber.running]
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        self.running = True


def build_broker(settings: Settings, service: str) -> Broker:
    """A broker whose producer waits for all replicas. It connects on `start()`, not here."""
    broker = Broker(
        client_id=f"ratchet-{service}",
        **broker_options(settings),
        allow_auto_create_topics=False,
        logger=None,
        middlewares=consumer_middlewares(settings, service),
    )
    broker.settings = settings
    return broker


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
            await self._consume(event, handle, [message.raw_message])

        self._subscribe(event, consume, batch=False)

    def on_batch(
        self,
        event: type[E],
        handler: BatchHandler[E],
        *,
        max_records: int = 500,
        wait_ms: int = 200,
        min_bytes: int = 1,
        on_passed_over: PassedOver | None = None,
        resume: Resume | None = None,
        decode: Decode | None = None,
    ) -> None:
        """Subscribe a handler of many events at once; all of them are acknowledged together, after it returns.

        A batch is what the broker has, up to `max_records`; the broker lets us wait for `min_bytes` (compressed), but
        no longer than `wait_ms`.

        `on_passed_over` hears of each record that the handler is not given, because it is a dead letter or was
        replayed for another service: who keeps positions must move past it, or a cycle whose fence lies behind it
        would wait forever. `resume` is asked, at each assignment, where the store that the handler fills wants to go
        on (shared/kafka/resuming.py). `decode` makes the deliveries' events of the records' values instead of the
        event's class (shared/kafka/decoding.py); it raises InvalidMessage.
        """
        listener = self._resuming(event, resume) if resume else None

        async def consume(body: Any, message: KafkaMessage) -> None:
            raw = message.raw_message
            records = raw if isinstance(raw, tuple | list) else (raw,)
            if listener and not listener.expects(_firsts(records)):
                raise DependencyUnavailable("the store is asked where to go on")
            await self._consume(event, handler, records, on_passed_over, decode)
            if listener:
                listener.handled(_lasts(records))

        options = {
            "max_records": max_records, "batch_timeout_ms": wait_ms, "fetch_max_wait_ms": wait_ms,
            "fetch_min_bytes": min_bytes,
        }  # fmt: skip
        subscriber = self._subscribe(event, consume, batch=True, listener=listener, **options)
        if listener:
            listener.consumer_of(subscriber)

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
            await self._consume(event, put, [message.raw_message])

        self._broker.subscriber(
            topic,
            group_id=None,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.ACK_FIRST,
            parser=self._parser,
            decoder=_undecoded,
            no_reply=True,
        )(consume)
        return table

    @property
    def _parser(self) -> Callable[..., Awaitable[KafkaMessage]]:
        return _traced if self._settings.otlp_endpoint else _bare

    def _checked_topic(self, event: type[E]) -> str:
        topic = topic_of(event)
        if self._service not in topic.consumers:
            raise ValueError(f"{self._service} is not a consumer of {topic.name}: see schemas/catalog.py")
        return topic.name

    def _resuming(self, event: type[E], resume: Resume) -> Resuming:
        async def ends(places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
            return await read_ends(self._settings, places)

        return Resuming(f"{self._service}: {topic_of(event).name}", resume, ends, self._halt)

    def _halt(self, problem: MustStop) -> None:
        logger.critical("%s must stop: %s %s", self._service, problem.reason, problem.way_out)
        if isinstance(self._broker, Broker):
            self._broker.halt(problem)

    def _subscribe(self, event: type[E], consume: Callable[..., Awaitable[None]], **options: Any) -> Any:
        topic = self._checked_topic(event)

        async def unless_halted(body: Any, message: KafkaMessage) -> None:
            if isinstance(self._broker, Broker) and self._broker.problem:
                _hold(message)
                raise self._broker.problem
            try:
                await consume(body, message)
            except MustStop as problem:
                _hold(message)
                self._halt(problem)
                raise
            except Exception as error:  # Told here, since FastStream's own log is off; raised for the redelivery.
                self._tell(error, f"{topic} is delivered again")
                await asyncio.sleep(self._settings.retry_base_seconds)  # What fails at once must not spin.
                raise

        subscriber = self._broker.subscriber(
            topic,
            group_id=f"ratchet.{self._service}.{topic}",
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            parser=self._parser,
            decoder=_undecoded,
            no_reply=True,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
            **options,
        )
        subscriber(unless_halted)
        return subscriber

    async def _consume(
        self,
        event: type[E],
        handler: BatchHandler[E],
        records: Sequence[ConsumerRecord],
        on_passed_over: PassedOver | None = None,
        decode: Decode | None = None,
    ) -> None:
        """Decode, hand over, bury what can never succeed. Raises only what must be redelivered."""
        sound: list[tuple[ConsumerRecord, Delivery[E]]] = []
        for number, record in enumerate(records, 1):
            if not number % _BREATH:
                await asyncio.sleep(0)
            headers = _headers(record)
            if headers.get(dl.HEADER_ONLY, self._service) != self._service:
                # Replayed from the dead letters of another service.
                if on_passed_over is not None:
                    await on_passed_over(Place(record.topic, record.partition, record.offset))
                continue
            try:
                value = record.value or b""
                decoded = decode(value) if decode else _decode(event, value)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not block the partition
                await self._bury(record, error, on_passed_over)
                continue
            sound.append((record, Delivery(decoded, record.topic, record.partition, record.offset, headers)))
        if sound:
            await self._hand_over(handler, sound, on_passed_over)

    async def _hand_over(
        self,
        handler: BatchHandler[E],
        sound: list[tuple[ConsumerRecord, Delivery[E]]],
        on_passed_over: PassedOver | None,
        tries: int = BUG_ATTEMPTS,
    ) -> None:
        try:
            await self._attempt(handler, [delivery for _, delivery in sound], tries)
        except (DependencyUnavailable, MustStop):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not block the partition
            if len(sound) == 1:
                await self._bury(sound[0][0], error, on_passed_over)
                return
            # Which of them is the bad one? Handlers are idempotent: each is tried alone. Once is enough where the
            # batch was tried often: pauses for each of hundreds would outlast the group's patience with this member.
            tries = tries if isinstance(error, InvalidMessage) else 1
            for one in sound:
                await self._hand_over(handler, [one], on_passed_over, tries)

    async def _attempt(self, handler: BatchHandler[E], deliveries: list[Delivery[E]], tries: int) -> None:
        """Call until it succeeds, or raise what it raised at last."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await handler(deliveries)
            except (InvalidMessage, MustStop):
                raise
            except Exception as error:  # Raised again below once it was tried often enough.
                away = isinstance(error, DependencyUnavailable)
                if attempt >= (self._settings.retry_attempts if away else tries):
                    raise
                pause = min(self._settings.retry_base_seconds * 2 ** (attempt - 1), MAX_PAUSE_SECONDS)
                self._tell(error, f"try {attempt} of {deliveries[0].topic} failed, again in {pause:.1f} s")
                await asyncio.sleep(pause)

    def _tell(self, error: Exception, what: str) -> None:
        """Log what is tried again. The words of an unforeseen error may quote a message: where it arose must do."""
        if isinstance(error, DependencyUnavailable):
            logger.info("%s: %s: %s", self._service, what, error)
        else:
            trace = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s: %s: %s\n%s", self._service, what, type(error).__name__, trace)

    async def bury(self, topic: str, key: bytes | None, value: bytes, error: Exception, headers: Carried = ()) -> None:
        """Keep, as a dead letter of this service, a record that never came to lie in its topic.

        Raises DependencyUnavailable; from MessageSizeTooLargeError where it is too large for a letter.
        """
        trace = {name: one.decode("ascii") for name, one in carried_by(headers)}
        await self._keep(key, value, error, {dl.HEADER_TOPIC: topic, **trace})

    async def _bury(self, record: ConsumerRecord, error: Exception, on_passed_over: PassedOver | None = None) -> None:
        """Keep the raw record, with where it lay and why it failed, in the service's dead-letter topic."""
        place = Place(record.topic, record.partition, record.offset)
        lay = {
            dl.HEADER_TOPIC: place.topic,
            dl.HEADER_PARTITION: str(place.partition),
            dl.HEADER_OFFSET: str(place.offset),
            dl.HEADER_REPLAYED: _headers(record).get(dl.HEADER_REPLAYED, "0"),
            **letter_headers(_headers(record)),
        }
        try:
            await self._keep(record.key, record.value or b"", error, lay)
        except DependencyUnavailable as failure:
            if not isinstance(failure.__cause__, MessageSizeTooLargeError):
                raise
            note = InvalidMessage(
                f"{len(record.value or b'')} bytes are too many for a letter; it lies in its topic. {error}"
            )
            await self._keep(record.key, b"", note, lay)
        if on_passed_over is not None:
            await on_passed_over(place)

    async def _keep(self, key: bytes | None, value: bytes, error: Exception, lay: dict[str, str]) -> None:
        where = "/".join(lay[name] for name in (dl.HEADER_TOPIC, dl.HEADER_PARTITION, dl.HEADER_OFFSET) if name in lay)
        # The error's words may quote the message: they are for `ratchet dlq show`, not for a log.
        logger.error("%s: dead letter from %s: %s", self._service, where, type(error).__name__)
        sealed, headers = seal_letter(self._cipher, self._service, value, error)
        await _send(self._broker, dl.dead_letter_topic(self._service), key, sealed, headers | lay)

    @cached_property
    def _cipher(self) -> Cipher:
        return load_cipher(self._settings.secrets_folder, SEAL_NAME)


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


def _headers(record: ConsumerRecord) -> Mapping[str, str]:
    return _text(tuple(record.headers)) if record.headers else _NO_HEADERS


@lru_cache(maxsize=256)
def _text(headers: tuple[tuple[str, bytes | None], ...]) -> Mapping[str, str]:
    """Kept, since nearly all records have the same. Read-only."""
    return MappingProxyType({name: (value or b"").decode(errors="replace") for name, value in headers})


def _firsts(records: Sequence[ConsumerRecord]) -> dict[tuple[str, int], int]:
    return {(one.topic, one.partition): one.offset for one in reversed(records)}


def _lasts(records: Sequence[ConsumerRecord]) -> dict[tuple[str, int], int]:
    return {(one.topic, one.partition): one.offset for one in records}


def _hold(message: KafkaMessage) -> None:
    """Have nothing more delivered to this subscription: the refused records would come at once, again and again."""
    if isinstance(message.consumer, AIOKafkaConsumer):
        message.consumer.pause(*message.consumer.assignment())


async def _bare(raw: Any, original: Callable[[Any], Awaitable[KafkaMessage]]) -> KafkaMessage:
    """FastStream's message without headers, the record in it as it came.

    FastStream wants every header to be UTF-8 text. One that is none, as tracers write them, would make it pass the
    whole batch by, neither handled nor buried. Ours are read in `_headers`.
    """
    batch = isinstance(raw, tuple | list)
    first = replace(raw[0] if batch else raw, headers=())
    message = await original((first,) if batch else first)
    message.raw_message = raw
    return message


async def _traced(raw: Any, original: Callable[[Any], Awaitable[KafkaMessage]]) -> KafkaMessage:
    """The same with what FastStream's tracing looks for: the trace of a record, or of each in a batch."""
    message = await _bare(raw, original)
    message.correlation_id = message.message_id
    if isinstance(raw, tuple | list):
        traces = filter(None, (_trace_of(record) for record in raw))
        message.batch_headers = [{"correlation_id": one["traceparent"], **one} for one in traces]
    else:
        message.headers = _trace_of(raw)
    return message


def _trace_of(record: ConsumerRecord) -> dict[str, str]:
    return {name: value.decode("ascii") for name, value in carried_by(record.headers)}


async def _undecoded(message: KafkaMessage) -> Any:
    """Leave the body as it came: decoding is ours, so that malformed JSON reaches the dead letters too."""
    return message.body
