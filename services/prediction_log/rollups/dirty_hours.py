"""Finds the hours that changed since they were last published, in the tables' Delta logs.

Every commit of new rows names its files with their first and last time, so an hour is published again whenever a row
of it is appended, however late. Compaction appends no rows. A deletion rewrites files that hold many other hours, so
its commit says which hours lost rows (`deletion_metadata`). The watermark, how far a log was read and published, is
stored in the lake: a process that was killed before it published skips nothing. Several processes may store it, each
at its own pace: reading on from a lower watermark only publishes some hours again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from pyarrow.fs import FileType

from schemas.lake import PREDICTIONS, REQUESTS
from services.prediction_log.parquet_files import filesystem
from services.prediction_log.tables import STORE_ERRORS, open_table
from shared.errors import DependencyUnavailable

logger = logging.getLogger(__name__)
HOUR = timedelta(hours=1)
COUNTED_TABLES = (PREDICTIONS, REQUESTS)
_DELETION_METADATA = "ratchet.deleted"
_WATERMARK_FILE = "_rolled_up.json"
"""In the table's folder, where neither its readers nor a vacuum look."""
_CLOCK_TOLERANCE_MS = 3_600_000
"""A file is written before its commit, and its time comes from another machine's clock."""
_TaskSpan = tuple[str, datetime, datetime]
"""Task, first and last time of a file's rows."""
GroupKey = tuple[str, str, str, str | None]
"""What an hour is counted by: task, task_revision, variant, adapter."""


@dataclass(frozen=True)
class TaskHour:
    """An hour of a task. `start` is on the hour, in UTC."""

    task: str
    start: datetime


@dataclass(frozen=True)
class _Watermark:
    """The version up to which a table's log was read; `at`: when, in milliseconds since 1970."""

    table_id: str
    version: int
    at: int


def deletion_metadata(rows: pl.DataFrame) -> dict[str, str]:
    """Return the commit metadata for a deletion of rows with hour, task, task_revision, variant, adapter."""
    groups = [(hour.isoformat(), *group) for hour, *group in rows.unique().sort(pl.all()).iter_rows()]
    return {_DELETION_METADATA: json.dumps(groups)} if groups else {}


class DirtyHours:
    """The hours of the lake at `uri` that changed and are not published yet."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._watermarks: dict[str, _Watermark] = {}
        self._stored: dict[str, _Watermark | None] = {}
        self._dirty: dict[TaskHour, set[GroupKey]] = {}
        self._put_off: set[TaskHour] = set()

    def pending(self) -> list[TaskHour]:
        """Read the logs; return the hours to publish, oldest first, those put off last.

        Blocks. Raises DependencyUnavailable.
        """
        try:
            if not self._dirty:  # All hours up to the watermarks are published.
                self._store_watermarks()
            for table in COUNTED_TABLES:
                self._read_log(table)
        except STORE_ERRORS as error:
            raise DependencyUnavailable(f"the logs of the lake at {self._uri} were not read: {error}") from error
        return sorted(self._dirty, key=lambda hour: (hour in self._put_off, hour.start, hour.task))

    def published(self, hour: TaskHour) -> None:
        """Record that an hour was published as of the last call of `pending`."""
        self._dirty.pop(hour, None)
        self._put_off.discard(hour)

    def put_off(self, hour: TaskHour) -> None:
        """Record that an hour could not be counted: the others go first, since it may never be."""
        self._put_off.add(hour)

    def groups_with_deletions(self, hour: TaskHour) -> frozenset[GroupKey]:
        """Return the groups of a pending hour that lost rows: they may have none left."""
        return frozenset(self._dirty.get(hour, ()))

    def _read_log(self, table: str) -> None:
        delta = open_table(self._uri, table)
        if delta is None:
            return
        if table not in self._stored:
            self._stored[table] = self._stored_watermark(table)
        newest = _Watermark(str(delta.metadata().id), delta.version(), int(time.time() * 1000))
        watermark = self._watermarks.get(table) or self._stored[table]
        if watermark is None or watermark.table_id != newest.table_id:
            self._add_spans(_spans_of_files(delta, since=0))
        elif watermark.version == newest.version:
            return
        else:
            try:
                commits = list(self._commits(table, watermark.version + 1, newest.version))
            except FileNotFoundError:  # The log was cleaned up before it was read.
                self._add_spans(_spans_of_files(delta, since=watermark.at - _CLOCK_TOLERANCE_MS))
            else:
                for actions in commits:
                    self._add_spans(_spans_of_new_rows(actions))
                    self._add_deletions(actions)
        self._watermarks[table] = newest

    def _commits(self, table: str, first: int, last: int) -> Iterator[list[dict[str, Any]]]:
        store = filesystem(self._uri, table)
        for number in range(first, last + 1):
            with store.open_input_stream(f"_delta_log/{number:020d}.json") as commit:
                yield [json.loads(line) for line in commit.read().splitlines() if line.strip()]

    def _add_spans(self, spans: Iterable[_TaskSpan]) -> None:
        for task, first, last in spans:
            for start in _hours(first, last):
                self._dirty.setdefault(TaskHour(task, start), set())

    def _add_deletions(self, actions: list[dict[str, Any]]) -> None:
        for info in (action["commitInfo"] for action in actions if "commitInfo" in action):
            for hour, *group in json.loads(info.get(_DELETION_METADATA, "[]")):
                self._dirty.setdefault(TaskHour(group[0], datetime.fromisoformat(hour)), set()).add((*group,))

    def _stored_watermark(self, table: str) -> _Watermark | None:
        store = filesystem(self._uri, table)
        if store.get_file_info(_WATERMARK_FILE).type == FileType.NotFound:
            return None
        with store.open_input_stream(_WATERMARK_FILE) as file:
            text = file.read()
        try:
            return _Watermark(**json.loads(text))
        except (ValueError, TypeError):
            logger.warning(
                "invalid watermark in %s/%s/%s: all hours are counted again", self._uri, table, _WATERMARK_FILE
            )
            return None

    def _store_watermarks(self) -> None:
        for table, watermark in self._watermarks.items():
            if watermark != self._stored[table]:
                with filesystem(self._uri, table).open_output_stream(_WATERMARK_FILE) as file:
                    file.write(json.dumps(asdict(watermark)).encode())
                self._stored[table] = watermark


def _spans_of_files(delta: DeltaTable, since: int) -> Iterator[_TaskSpan]:
    """Yield the spans of the table's files written since a time (ms), compacted ones too."""
    files = pl.DataFrame(pa.table(delta.get_add_actions(flatten=True)))
    for row in files.filter(pl.col("modification_time") >= since).iter_rows(named=True):
        first, last = row.get("min.occurred_at"), row.get("max.occurred_at")
        yield _span(row["partition.task"], str(row["partition.date"]), first, last)


def _spans_of_new_rows(actions: list[dict[str, Any]]) -> Iterator[_TaskSpan]:
    """Yield the spans of the files with new rows in a commit."""
    if any(action.get("commitInfo", {}).get("operation") == "DELETE" for action in actions):
        return
    for add in (action["add"] for action in actions if "add" in action):
        if not add.get("dataChange", True):
            continue
        statistics = json.loads(add.get("stats") or "{}")
        first, last = (statistics.get(end, {}).get("occurred_at") for end in ("minValues", "maxValues"))
        yield _span(
            add["partitionValues"]["task"],
            add["partitionValues"]["date"],
            datetime.fromisoformat(first) if first else None,
            datetime.fromisoformat(last) if last else None,
        )


def _span(task: str, date: str, first: datetime | None, last: datetime | None) -> _TaskSpan:
    """Return a file's span; without statistics it may have rows of the whole day."""
    day = datetime.fromisoformat(date).replace(tzinfo=UTC)
    return task, first or day, last or day + timedelta(hours=23)


def _hours(first: datetime, last: datetime) -> Iterator[datetime]:
    start = first.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    for number in range((last - start) // HOUR + 1):  # Behind the last hour of year 9999 there is no time.
        yield start + number * HOUR
