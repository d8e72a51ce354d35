"""What goes through a spool, and how a spool is set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from shared.errors import DependencyUnavailable


class SpoolFull(DependencyUnavailable):
    """Nothing was kept of this append: the size or age limit is reached, or the disk takes no more."""


class Sync(StrEnum):
    """What a record survives once it is acknowledged."""

    PROCESS = "process"
    """`kill -9` of the process, not a power cut: it is in the page cache."""
    INTERVAL = "interval"
    """A power cut too, but for the last `sync_seconds`: fsync in the background."""
    ALWAYS = "always"
    """A power cut too: fsync before the answer, one for all that wait (`Spool.synced`)."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message that goes to Kafka later. `headers` are for what is not the event's own: where its trace goes on."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class Position(NamedTuple):
    """A place in a slot: before record number `record` of the frame at byte `offset` of segment `segment`."""

    segment: int
    offset: int
    record: int


@dataclass(frozen=True, slots=True)
class Spooled:
    """A record as it is read back. `appended_at`: Unix seconds. `position`: the place after it, for `advance`."""

    record: Record
    appended_at: float
    position: Position


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is not shipped yet. `oldest`: when its first record was appended (Unix seconds), None if there is none."""

    bytes: int
    oldest: float | None


@dataclass(frozen=True)
class SpoolOptions:
    """`max_bytes` and `max_age_seconds` bound what is not shipped in one slot: at the limit appends are refused.

    A segment ends after `segment_bytes`, or at the first append after `segment_seconds`; what is shipped leaves the
    disk with its segment.
    """

    sync: Sync = Sync.INTERVAL
    sync_seconds: float = 1.0
    segment_bytes: int = 16 << 20
    segment_seconds: float = 600.0
    max_bytes: int = 1 << 30
    max_age_seconds: float = 3 * 24 * 3600.0
