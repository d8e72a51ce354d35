"""Dead letters: what a service could not handle, kept sealed; read, and sent again to that service alone.

A letter's value and the reason of its failure are encrypted (shared/privacy/encryption.py), since both may hold
personal data that was not redacted yet. A replayed record goes back to its topic as it was, with `x-ratchet-only`, so
that the topic's other consumers, who handled it the first time, pass it by. How far a service's letters are replayed
is the committed offset of a consumer group.
"""

from __future__ import annotations

import base64
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas import catalog
from schemas.base import utc_now
from shared.errors import DependencyUnavailable
from shared.kafka.clients import build_producer, end_offsets, open_consumer
from shared.privacy.encryption import Cipher, DecryptionFailed, load_cipher
from shared.settings import Settings
from shared.tracing import pick_trace_headers

DEAD_LETTER_KEY = "dead-letters"
MAX_SHOWN = 1_000
_ERROR_LENGTH = 2_000
_REMEMBERED = 100_000
"""Places of letters that are remembered while open_consumer: the same record, buried twice, counts once."""
_SECONDS = 30.0


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter, opened. `offset` is its place in the dead-letter topic.

    `broken` says why it could not be opened (another key, damage); value and error are empty then.
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
        """Where the record lay: equal for letters that are about the same record."""
        names = (catalog.HEADER_TOPIC, catalog.HEADER_PARTITION, catalog.HEADER_OFFSET)
        return "/".join(self.headers.get(name, "?") for name in names)


@dataclass(frozen=True)
class PendingDeadLetters:
    """How many letters were not replayed yet, and the last of them."""

    count: int
    last: DeadLetter | None


def encrypt_dead_letter(cipher: Cipher, service: str, value: bytes, error: Exception) -> tuple[bytes, dict[str, str]]:
    """Value and headers of a letter of `service`; where the record lay is for the caller to add."""
    sealed = cipher.encrypt(value)
    reason = f"{type(error).__name__}: {error}"[:_ERROR_LENGTH]
    headers = {
        catalog.HEADER_ENCRYPTED: sealed[:4].hex(),
        catalog.HEADER_ERROR: base64.b64encode(cipher.encrypt(reason.encode())).decode(),
        catalog.HEADER_SERVICE: service,
        catalog.HEADER_FAILED_AT: utc_now().isoformat(),
        catalog.HEADER_REPLAYED: "0",
    }
    return sealed, headers


def decrypt_dead_letter(
    cipher: Cipher, offset: int, key: bytes | None, value: bytes, headers: Mapping[str, str]
) -> DeadLetter:
    """A letter as it lies in its topic, opened; those from before letters were sealed are taken as they are."""
    kept = dict(headers)
    if catalog.HEADER_ENCRYPTED not in headers:
        return DeadLetter(offset, key, value, headers.get(catalog.HEADER_ERROR, "?"), kept)
    try:
        reason = cipher.decrypt(base64.b64decode(headers.get(catalog.HEADER_ERROR, ""))).decode(errors="replace")
        return DeadLetter(offset, key, cipher.decrypt(value), reason, kept)
    except (DecryptionFailed, ValueError) as error:
        broken = error if isinstance(error, DecryptionFailed) else DecryptionFailed(f"a header is damaged: {error}")
        return DeadLetter(offset, key, b"", f"cannot be opened: {broken.reason}", kept, broken)


async def count_pending(settings: Settings, service: str) -> PendingDeadLetters:
    """Counts by open_consumer, one batch at a time."""
    count, last = 0, None
    async for letter in _waiting(settings, service):
        count, last = count + 1, letter
    return PendingDeadLetters(count, last)


async def read_dead_letters(settings: Settings, service: str, limit: int = MAX_SHOWN) -> list[DeadLetter]:
    """The newest letters that were not replayed yet, oldest of them first; at most `limit`."""
    newest: deque[DeadLetter] = deque(maxlen=min(limit, MAX_SHOWN))
    async for letter in _waiting(settings, service):
        newest.append(letter)
    return list(newest)


async def replay_dead_letters(
    settings: Settings, service: str, limit: int | None = None, *, skip_broken: bool = False
) -> int:
    """Send letters back to their topics, for this service only, oldest first; returns how many.

    Each is acknowledged by the broker before it is noted as replayed: a crash in between sends one letter twice, which
    handlers bear, and never none. What fails again becomes a letter behind those that waited when this began. Raises
    DecryptionFailed at a letter that cannot be opened, unless `skip_broken`: it is then left behind for good.
    """
    sent = 0
    producer = build_producer(settings, "ratchet-dlq")
    await producer.start()
    try:
        async with _consumer(settings, service) as consumer:
            async for letter, again in _letters(settings, service, consumer):
                if limit is not None and sent >= limit and not again:
                    break
                if letter.broken and not skip_broken:
                    raise letter.broken
                if not letter.broken and not again:
                    await producer.send_and_wait(
                        letter.topic, letter.value, key=letter.key, headers=_headers(letter, service)
                    )
                    sent += 1
                await consumer.commit({_partition(service): letter.offset + 1})
    finally:
        await producer.stop()
    return sent


def _headers(letter: DeadLetter, service: str) -> list[tuple[str, bytes]]:
    only = {catalog.HEADER_ONLY: service, catalog.HEADER_REPLAYED: str(letter.replayed + 1)}
    headers = {"content-type": "application/json", **pick_trace_headers(letter.headers), **only}
    return [(name, value.encode()) for name, value in headers.items()]


def _partition(service: str) -> TopicPartition:
    return TopicPartition(catalog.dead_letter_topic(service), 0)


def _consumer(settings: Settings, service: str) -> AbstractAsyncContextManager[AIOKafkaConsumer]:
    group = f"ratchet.letters.{service}"
    return open_consumer(settings, group_id=group, auto_offset_reset="earliest", max_poll_records=100)


async def _waiting(settings: Settings, service: str) -> AsyncIterator[DeadLetter]:
    async with _consumer(settings, service) as consumer:
        async for letter, again in _letters(settings, service, consumer):
            if not again:
                yield letter


async def _letters(
    settings: Settings, service: str, consumer: AIOKafkaConsumer
) -> AsyncIterator[tuple[DeadLetter, bool]]:
    """From what was replayed up to what is there now; and whether the letter is about a record that had one already."""
    place = _partition(service)
    end = (await end_offsets(settings, [place]))[place]
    cipher = load_cipher(settings.secrets_folder, DEAD_LETTER_KEY)
    consumer.assign([place])
    known: OrderedDict[str, None] = OrderedDict()
    silent_since = time.monotonic()
    while await consumer.position(place) < end:
        records = (await consumer.getmany(place, timeout_ms=1_000)).get(place, [])
        if records:
            silent_since = time.monotonic()
        elif time.monotonic() - silent_since > _SECONDS:
            raise DependencyUnavailable(f"Kafka has not given {place.topic} up to its end", "Try again")
        for record in records:
            if record.offset >= end:
                return
            headers = {name: value.decode(errors="replace") for name, value in record.headers}
            letter = decrypt_dead_letter(cipher, record.offset, record.key, record.value or b"", headers)
            yield letter, letter.origin in known
            if "?" not in letter.origin:
                known[letter.origin] = None
                if len(known) > _REMEMBERED:
                    known.popitem(last=False)
