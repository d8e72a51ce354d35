"""What a service produces: events to the topics that the catalog names for them, and its dead letters."""

from __future__ import annotations

import logging
from functools import cached_property

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from faststream.kafka import KafkaBroker

from schemas import catalog
from schemas.base import Event
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.dead_letters import DEAD_LETTER_KEY, encrypt_dead_letter
from shared.kafka.delivery import record_headers
from shared.privacy.encryption import Cipher, load_cipher
from shared.settings import Settings
from shared.tracing import TraceHeaders, pick_trace_headers, trace_headers_of

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_BEGINNING = 256 * 1024
"""Bytes of a record that is too large for a dead letter."""

logger = logging.getLogger(__name__)


class Publisher:
    """Publishes a service's events, each to its topic and with its key, as the catalog says."""

    def __init__(self, broker: KafkaBroker, service: str) -> None:
        self._broker = broker
        self._service = service

    async def publish(self, event: Event) -> None:
        """Return when all replicas have the event. Raises DependencyUnavailable while the broker is away."""
        topic = catalog.topic_of(type(event))
        if self._service not in topic.producers:
            raise ValueError(f"{self._service} is not a producer of {topic.name}: see schemas/catalog.py")
        key, value = catalog.key_of(event).encode(), event.model_dump_json().encode()
        await _send(self._broker, topic.name, key, value, {})


class DeadLetterPublisher:
    """Publishes what a service could not handle to its dead-letter topic, encrypted (shared/kafka/dead_letters.py)."""

    def __init__(self, broker: KafkaBroker, service: str, settings: Settings) -> None:
        self._broker = broker
        self._service = service
        self._settings = settings

    async def publish(
        self, topic: str, key: bytes | None, value: bytes, error: Exception, headers: TraceHeaders = ()
    ) -> None:
        """Dead-letter a record that never reached its topic. Raises DependencyUnavailable.

        Where the record is too large for a dead letter, only its beginning and the reason are published.
        """
        trace = {name: header.decode("ascii") for name, header in trace_headers_of(headers)}
        origin = {catalog.HEADER_TOPIC: topic, **trace}
        try:
            await self._publish(key, value, error, origin)
        except DependencyUnavailable as failure:
            if not isinstance(failure.__cause__, _TOO_LARGE):
                raise
            reason = f"the record's {len(value)} bytes are too large for a dead letter; this is its beginning. {error}"
            await self._publish(key, value[:_BEGINNING], InvalidMessage(reason), origin)

    async def publish_record(self, record: ConsumerRecord, error: Exception) -> None:
        """Dead-letter a consumed record with its position and why it failed. Raises DependencyUnavailable.

        Where the record is too large for a dead letter, only its position and the reason are published.
        """
        headers = record_headers(record)
        origin = {
            catalog.HEADER_TOPIC: record.topic,
            catalog.HEADER_PARTITION: str(record.partition),
            catalog.HEADER_OFFSET: str(record.offset),
            catalog.HEADER_REPLAYED: headers.get(catalog.HEADER_REPLAYED, "0"),
            catalog.HEADER_SENT_AT: headers.get(catalog.HEADER_SENT_AT, str(record.timestamp)),
            **pick_trace_headers(headers),
        }
        value = record.value or b""
        try:
            await self._publish(record.key, value, error, origin)
        except DependencyUnavailable as failure:
            if not isinstance(failure.__cause__, _TOO_LARGE):
                raise
            reason = f"the record's {len(value)} bytes are too large for a dead letter; read it in its topic. {error}"
            await self._publish(None, b"", InvalidMessage(reason), origin)  # Its key may be what is too large.

    async def _publish(self, key: bytes | None, value: bytes, error: Exception, origin: dict[str, str]) -> None:
        position = (catalog.HEADER_TOPIC, catalog.HEADER_PARTITION, catalog.HEADER_OFFSET)
        where = "/".join(origin[name] for name in position if name in origin)
        # The error's text may quote the message: it is for `ratchet dlq show`, not for a log.
        logger.error("%s: dead-lettered %s: %s", self._service, where, type(error).__name__)
        encrypted, headers = encrypt_dead_letter(self._cipher, self._service, key, value, error)
        await _send(self._broker, catalog.dead_letter_topic(self._service), None, encrypted, headers | origin)

    @cached_property
    def _cipher(self) -> Cipher:
        return load_cipher(self._settings.secrets_folder, DEAD_LETTER_KEY)


async def _send(broker: KafkaBroker, topic: str, key: bytes | None, value: bytes, headers: dict[str, str]) -> None:
    try:
        await broker.publish(value, topic, key=key, headers={"content-type": "application/json", **headers})
    except (KafkaError, ConnectionError, TimeoutError) as error:
        raise DependencyUnavailable(
            f"Kafka did not accept a record for {topic}: {error!r}", "Check the broker: ratchet status"
        ) from error
