"""A record as it was delivered: its event, its position and its headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from aiokafka import ConsumerRecord
from aiokafka import TopicPartition as TopicPartition
from pydantic import ValidationError

from schemas.base import Event
from schemas.catalog import HEADER_SENT_AT
from shared.errors import InvalidMessage, describe_validation_error

E = TypeVar("E", bound=Event)
_MAX_DIGITS = 14
"""Of milliseconds: of years with four digits."""
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class RecordPosition(NamedTuple):
    """The position of a record that was skipped: a dead letter, a replay for another service, or a deleted one."""

    topic: str
    partition: int
    offset: int


class Delivery(NamedTuple, Generic[E]):
    """An event and the position of its record. (A tuple, because a batch has thousands: it is five times as fast.)

    `timestamp`: of the record, in ms since 1970; of a replay that of the dead letter's.
    """

    event: E
    topic: str
    partition: int
    offset: int
    headers: Mapping[str, str]
    timestamp: int = 0

    @property
    def sent_at(self) -> datetime | None:
        """When the event was sent first, by the producer's clock; None: not known."""
        text = self.headers.get(HEADER_SENT_AT, "")
        sent = int(text) if text.isdigit() and len(text) < _MAX_DIGITS else self.timestamp
        return datetime.fromtimestamp(sent / 1000, UTC) if sent > 0 else None


def decode_event(event: type[E], value: bytes) -> E:
    """Return the event in a record's JSON value. Raises InvalidMessage when it is not valid."""
    try:
        return event.model_validate_json(value)
    except ValidationError as error:
        raise InvalidMessage(f"not a valid {event.__name__}: {describe_validation_error(error)}") from error


def record_size(record: ConsumerRecord) -> int:
    """Return the bytes of a record's value."""
    return len(record.value or b"")


def split_records(records: Sequence[ConsumerRecord], max_bytes: int) -> Iterator[Sequence[ConsumerRecord]]:
    """Split records into runs whose values have at most `max_bytes` together, or of one record."""
    start, size = 0, 0
    for number, record in enumerate(records):
        if number > start and size + record_size(record) > max_bytes:
            yield records[start:number]
            start, size = number, 0
        size += record_size(record)
    yield records[start:]


def record_headers(record: ConsumerRecord) -> Mapping[str, str]:
    """Return a record's headers as text, read-only. Bytes that are not UTF-8 are replaced."""
    return _text(tuple(record.headers)) if record.headers else _NO_HEADERS


@lru_cache(maxsize=256)
def _text(headers: tuple[tuple[str, bytes | None], ...]) -> Mapping[str, str]:
    """Cached, since nearly all records have the same headers."""
    return MappingProxyType({name: (value or b"").decode(errors="replace") for name, value in headers})
