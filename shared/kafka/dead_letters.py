"""Dead letters: records that a service could not handle, stored encrypted, read, and replayed to that service alone.

A dead letter's value, error and key are encrypted (shared/privacy/encryption.py), the latter two in headers: all may
hold personal data that is not redacted yet, and applications choose keys. A replayed record goes back to its topic
unchanged, with `x-ratchet-only`, so that the topic's other consumers, which handled it the first time, skip it. How far
a service's dead letters are replayed is the committed offset of a consumer group.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer

from schemas import catalog
from schemas.base import utc_now
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.clients import end_offsets, open_consumer, open_producer
from shared.kafka.delivery import TopicPartition
from shared.privacy.encryption import Cipher, DecryptionFailed, load_cipher
from shared.settings import Settings
from shared.tracing import pick_trace_headers

DEAD_LETTER_KEY = "dead-letters"  # The name of the encryption key in the secrets folder.
MAX_SHOWN = 1_000
_MAX_ERROR_CHARS = 2_000
_READ_SECONDS = 30.0


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter, decrypted. `offset` is its own in the dead-letter topic.

    `key` is that of the record. `broken` says why it could not be decrypted (another key, damage): then `key` is None,
    `value` empty.
    """

    offset: int
    key: bytes | None
    value: bytes
    error: str
    headers: dict[str, str]
    broken: DecryptionFailed | None = None

    @property
    def topic(self) -> str:
        return self.headers.get(catalog.HEADER_TOPIC, "?")

    @property
    def failed_at(self) -> str:
        return self.headers.get(catalog.HEADER_FAILED_AT, "")

    @property
    def replayed(self) -> int:
        text = self.headers.get(catalog.HEADER_REPLAYED, "0")
        return int(text) if text.isdigit() else 0

    @property
    def origin(self) -> str:
        """The record's position in its own topic, and its time: a topic that is made anew counts its offsets anew."""
        names = (catalog.HEADER_TOPIC, catalog.HEADER_PARTITION, catalog.HEADER_OFFSET)
        position = "/".join(self.headers.get(name, "?") for name in names)
        return f"{position} {self.headers.get(catalog.HEADER_SENT_AT, '')}"


@dataclass(frozen=True)
class PendingDeadLetters:
    """How many dead letters were not replayed yet, and the last of them."""

    count: int
    last: DeadLetter | None


def encrypt_dead_letter(
    cipher: Cipher, service: str, key: bytes | None, value: bytes, error: Exception
) -> tuple[bytes, dict[str, str]]:
    """Return the value and headers of a dead letter of a record; the caller adds the record's position to them."""
    encrypted = cipher.encrypt(value)
    reason = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
    headers = {
        catalog.HEADER_ENCRYPTED: encrypted[:4].hex(),
        catalog.HEADER_ERROR: _to_header(cipher, reason.encode()),
        catalog.HEADER_SERVICE: service,
        catalog.HEADER_FAILED_AT: utc_now().isoformat(),
        catalog.HEADER_REPLAYED: "0",
    }
    return encrypted, headers if key is None else headers | {catalog.HEADER_KEY: _to_header(cipher, key)}


def decrypt_dead_letter(cipher: Cipher, offset: int, value: bytes, headers: Mapping[str, str]) -> DeadLetter:
    """Return the dead letter in a record of a dead-letter topic."""
    copied = dict(headers)
    try:
        key = _from_header(cipher, headers[catalog.HEADER_KEY]) if catalog.HEADER_KEY in headers else None
        reason = _from_header(cipher, headers.get(catalog.HEADER_ERROR, "")).decode(errors="replace")
        return DeadLetter(offset, key, cipher.decrypt(value), reason, copied)
    except (DecryptionFailed, ValueError) as error:
        broken = error if isinstance(error, DecryptionFailed) else DecryptionFailed(f"a header is damaged: {error}")
        return DeadLetter(offset, None, b"", f"cannot be decrypted: {broken.reason}", copied, broken)


def _to_header(cipher: Cipher, data: bytes) -> str:
    return base64.b64encode(cipher.encrypt(data)).decode()


def _from_header(cipher: Cipher, text: str) -> bytes:
    return cipher.decrypt(base64.b64decode(text))


async def count_pending(settings: Settings, service: str) -> PendingDeadLetters:
    """Count the dead letters that were not replayed yet, by reading them, one batch at a time."""
    count, last = 0, None
    async for dead_letter in _pending(settings, service):
        count, last = count + 1, dead_letter
    return PendingDeadLetters(count, last)


async def read_dead_letters(settings: Settings, service: str, limit: int = MAX_SHOWN) -> list[DeadLetter]:
    """Return the newest dead letters that were not replayed yet, the oldest of them first; at most `limit`."""
    newest: deque[DeadLetter] = deque(maxlen=min(limit, MAX_SHOWN))
    async for dead_letter in _pending(settings, service):
        newest.append(dead_letter)
    return list(newest)


_REPLAYED = b"|replayed|"


class Replayed(NamedTuple):
    """How many dead letters a replay has sent, and how many it has skipped for good."""

    sent: int
    skipped: int


TakeUnsent = Callable[[DeadLetter], None]
"""Takes a dead letter that never reached its topic, where it must not be as it is: it was not redacted."""


async def replay_dead_letters(
    settings: Settings,
    service: str,
    limit: int | None = None,
    *,
    skip_broken: bool = False,
    take_unsent: TakeUnsent | None = None,
) -> Replayed:
    """Send dead letters back to their topics, for this service only, oldest first.

    The broker acknowledges each before it is committed as replayed: a crash in between sends a record twice, which
    handlers tolerate, and never loses one. What fails again becomes a dead letter after those that were pending at the
    start. Raises DependencyUnavailable when the broker does not answer, DecryptionFailed at a dead letter that cannot
    be decrypted, unless `skip_broken` skips it for good, InvalidMessage at one that never reached its topic, unless
    `take_unsent` takes it.
    """
    sent = skipped = 0
    async with open_producer(settings, "ratchet-dlq") as producer, _consumer(settings, service) as consumer:
        async for dead_letter in _read(settings, service, consumer):
            if limit is not None and sent >= limit:
                break
            if dead_letter.broken and not skip_broken:
                raise dead_letter.broken
            if dead_letter.broken:
                skipped += 1
            else:
                await send_again(producer, dead_letter, service, take_unsent)
                sent += 1
            await consumer.commit({_partition(service): dead_letter.offset + 1})
    return Replayed(sent, skipped)


async def send_again(
    producer: Any, dead_letter: DeadLetter, service: str, take_unsent: TakeUnsent | None = None
) -> None:
    """Send a dead letter back to its topic, from where the service has it; else `take_unsent` takes it."""
    if dead_letter.topic in (topic.name for topic in catalog.topics_consumed_by(service)):
        headers, key = _replay_headers(dead_letter, service), _replay_key(dead_letter, service)
        await producer.send_and_wait(dead_letter.topic, dead_letter.value, key=key, headers=headers)
    elif take_unsent is not None:
        take_unsent(dead_letter)
    else:
        raise InvalidMessage(
            f"dead letter {dead_letter.offset} never reached {dead_letter.topic}: it may have personal data",
            f"Read it: ratchet dlq show {service}",
        )


def _replay_headers(dead_letter: DeadLetter, service: str) -> list[tuple[str, bytes]]:
    only = {catalog.HEADER_ONLY: service, catalog.HEADER_REPLAYED: str(dead_letter.replayed + 1)}
    headers = {"content-type": "application/json", **pick_trace_headers(dead_letter.headers), **only}
    if sent_at := dead_letter.headers.get(catalog.HEADER_SENT_AT):
        headers[catalog.HEADER_SENT_AT] = sent_at
    return [(name, value.encode()) for name, value in headers.items()]


def _replay_key(dead_letter: DeadLetter, service: str) -> bytes | None:
    """Return the record's key; in a compacted topic one of its own.

    Under the same key it would take the place of the newest value, for all services, which all but one skip. The key
    has the service and no number, so that of several replays the last one stays.
    """
    if not catalog.topic_named(dead_letter.topic).compacted:
        return dead_letter.key
    return (dead_letter.key or b"").partition(_REPLAYED)[0] + _REPLAYED + service.encode()


def _partition(service: str) -> TopicPartition:
    return TopicPartition(catalog.dead_letter_topic(service), 0)


def _consumer(settings: Settings, service: str) -> AbstractAsyncContextManager[AIOKafkaConsumer]:
    group = f"ratchet.letters.{service}"
    return open_consumer(settings, group_id=group, auto_offset_reset="earliest", max_poll_records=100)


async def _pending(settings: Settings, service: str) -> AsyncIterator[DeadLetter]:
    async with _consumer(settings, service) as consumer:
        async for dead_letter in _read(settings, service, consumer):
            yield dead_letter


async def _read(settings: Settings, service: str, consumer: AIOKafkaConsumer) -> AsyncIterator[DeadLetter]:
    """Yield what was not replayed, up to the topic's end now."""
    partition = _partition(service)
    end = (await end_offsets(settings, [partition]))[partition]
    cipher = load_cipher(settings.secrets_folder, DEAD_LETTER_KEY)
    consumer.assign([partition])
    silent_since = time.monotonic()
    while await consumer.position(partition) < end:
        records = (await consumer.getmany(partition, timeout_ms=1_000)).get(partition, [])
        if records:
            silent_since = time.monotonic()
        elif time.monotonic() - silent_since > _READ_SECONDS:
            raise DependencyUnavailable(f"Kafka did not return {partition.topic} up to its end", "Try again")
        for record in records:
            if record.offset >= end:
                return
            headers = {name: value.decode(errors="replace") for name, value in record.headers}
            yield decrypt_dead_letter(cipher, record.offset, record.value or b"", headers)
