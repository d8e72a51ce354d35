"""The records in a spool, positions among them, and a spool's options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from shared.errors import DependencyUnavailable


class SpoolUnavailable(DependencyUnavailable):
    """The spool took no record: its size or age limit is reached, the disk is full or failed, or no slot opened."""


class Sync(StrEnum):
    """What a record survives once it is acknowledged."""

    PROCESS = "process"
    """`kill -9` of the process but not a power cut: the record is in the page cache."""
    INTERVAL = "interval"
    """A power cut too, except for the last `sync_seconds`: fsync in the background."""
    ALWAYS = "always"
    """A power cut too: fsync before the answer, shared by all who wait (`Spool.synced`)."""


class Record(NamedTuple):
    """A message to be shipped to Kafka. `headers` hold what is not part of the event, such as its trace."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class SpoolPosition(NamedTuple):
    """A position in a slot: before record number `record` of the frame at byte `offset` of segment `segment`."""

    segment: int
    offset: int
    record: int


class SpooledRecord(NamedTuple):
    """A record read from a spool. `appended_at`: Unix seconds; `position`: behind the record, for `advance`."""

    record: Record
    appended_at: float
    position: SpoolPosition


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is not shipped yet. `oldest`: when its first record was appended (Unix seconds), None if it is empty."""

    bytes: int
    oldest: float | None


@dataclass(frozen=True)
class SpoolOptions:
    """When to fsync, when a segment ends, and how much of a slot may be unshipped before appends are refused.

    A segment ends after `segment_bytes`, or at the first append after `segment_seconds`. Disk space is freed by whole
    segments, once all their records are shipped.
    """

    sync: Sync = Sync.INTERVAL
    sync_seconds: float = 0.5
    segment_bytes: int = 16 << 20
    segment_seconds: float = 600.0
    max_bytes: int = 1 << 30
    max_age_seconds: float = 3 * 24 * 3600.0
