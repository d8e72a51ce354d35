"""Which hours have changed since they were last published, read from the tables' logs.

Every commit that brought rows names their files with their first and last time; so an hour is restated whenever a row
of it comes, however late. Compaction brings no rows. A deletion rewrites files that hold many other hours: who deletes
says in the commit which rows went (`deleted`). How far the logs were followed is kept in the lake, so a process that
was killed before it published leaves nothing out; several processes may keep it, each at its own pace, because the
least of them is true for all.
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
COUNTED = (PREDICTIONS, REQUESTS)
_DELETED = "ratchet.deleted"
_FILE = "_rolled_up.json"
"""In the table's folder, where neither its readers nor a vacuum look."""
_SLACK_MS = 3_600_000
"""A file is written before its commit, by another clock."""
_Span = tuple[str, datetime, datetime]
"""Task, first and last time of a file's rows."""
Group = tuple[str, str, str, str | None]
"""What an hour is counted by: task, task_revision, variant, adapter."""


@dataclass(frozen=True)
class Hour:
    """An hour of a task. `start` is on the hour, in UTC."""

    task: str
    start: datetime


@dataclass(frozen=True)
class Watermark:
    """A table's log was followed to this version; `at`: milliseconds since 1970."""

    table_id: str
    version: int
    at: int


def deleted(rows: pl.DataFrame) -> dict[str, str]:
    """What a deletion's commit says of `rows`: hour, task, task_revision, variant, adapter. To be `metadata` of it."""
    groups = [(hour.isoformat(), *group) for hour, *group in rows.unique().sort(pl.all()).iter_rows()]
    return {_DELETED: json.dumps(groups)} if groups else {}


class DirtyHours:
    """Of the lake at `uri`. Memory: the hours that are to be done."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._marks: dict[str, Watermark] = {}
        self._kept: dict[str, Watermark | None] = {}
        self._dirty: dict[Hour, set[Group]] = {}

    def look(self) -> list[Hour]:
        """The hours to be done, oldest first. Blocks. Raises DependencyUnavailable."""
        try:
            if not self._dirty:  # All that was seen is published.
                self._keep()
            for table in COUNTED:
                self._follow(table)
        except STORE_ERRORS as error:
            raise DependencyUnavailable(f"the logs of the lake at {self._uri} were not read: {error}") from error
        return sorted(self._dirty, key=lambda hour: (hour.start, hour.task))

    def done(self, hour: Hour) -> None:
        """It was published as it was at the last look."""
        self._dirty.pop(hour, None)

    def emptied(self, hour: Hour) -> frozenset[Group]:
        """The groups that lost rows in an hour to be done: they may have none left."""
        return frozenset(self._dirty.get(hour, ()))

    def _follow(self, table: str) -> None:
        delta = open_table(self._uri, table)
        if delta is None:
            return
        if table not in self._kept:
            self._kept[table] = self._read(table)
        now = Watermark(str(delta.metadata().id), delta.version(), int(time.time() * 1000))
        mark = self._marks.get(table) or self._kept[table]
        if mark is None or mark.table_id != now.table_id:
            self._mark(_written(delta, since=0))
        elif mark.version == now.version:
            return
        else:
            try:
                commits = list(self._commits(table, mark.version + 1, now.version))
            except FileNotFoundError:  # We slept so long that the log was cleaned up.
                self._mark(_written(delta, since=mark.at - _SLACK_MS))
            else:
                for actions in commits:
                    self._mark(_brought(actions))
                    self._mark_deleted(actions)
        self._marks[table] = now

    def _commits(self, table: str, first: int, last: int) -> Iterator[list[dict[str, Any]]]:
        store = filesystem(self._uri, table)
        for number in range(first, last + 1):
            with store.open_input_stream(f"_delta_log/{number:020d}.json") as commit:
                yield [json.loads(line) for line in commit.read().splitlines() if line.strip()]

    def _mark(self, spans: Iterable[_Span]) -> None:
        for task, first, last in spans:
            for start in _hours(first, last):
                self._dirty.setdefault(Hour(task, start), set())

    def _mark_deleted(self, actions: list[dict[str, Any]]) -> None:
        for info in (action["commitInfo"] for action in actions if "commitInfo" in action):
            for hour, *group in json.loads(info.get(_DELETED, "[]")):
                self._dirty.setdefault(Hour(group[0], datetime.fromisoformat(hour)), set()).add((*group,))

    def _read(self, table: str) -> Watermark | None:
        store = filesystem(self._uri, table)
        if store.get_file_info(_FILE).type == FileType.NotFound:
            return None
        with store.open_input_stream(_FILE) as file:
            text = file.read()
        try:
            return Watermark(**json.loads(text))
        except (ValueError, TypeError):
            logger.warning("%s/%s/%s is not ours: all hours are counted again", self._uri, table, _FILE)
            return None

    def _keep(self) -> None:
        for table, mark in self._marks.items():
            if mark != self._kept[table]:
                with filesystem(self._uri, table).open_output_stream(_FILE) as file:
                    file.write(json.dumps(asdict(mark)).encode())
                self._kept[table] = mark


def _written(delta: DeltaTable, since: int) -> Iterator[_Span]:
    """Of the table's files that were written since then (ms), compacted ones too."""
    files = pl.DataFrame(pa.table(delta.get_add_actions(flatten=True)))
    for row in files.filter(pl.col("modification_time") >= since).iter_rows(named=True):
        first, last = row.get("min.occurred_at"), row.get("max.occurred_at")
        yield _span(row["partition.task"], str(row["partition.date"]), first, last)


def _brought(actions: list[dict[str, Any]]) -> Iterator[_Span]:
    """What a commit's files with new rows span."""
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


def _span(task: str, date: str, first: datetime | None, last: datetime | None) -> _Span:
    """Without statistics a file may have rows of the whole day."""
    day = datetime.fromisoformat(date).replace(tzinfo=UTC)
    return task, first or day, last or day + timedelta(hours=23)


def _hours(first: datetime, last: datetime) -> Iterator[datetime]:
    start = first.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    while start <= last:
        yield start
        start += HOUR
