"""The lake kept small and clean by a schedule: compaction, checkpoints, vacuum, retention, and the forgotten swept.

Every replica runs this; who comes first says so in the table (`tables.fence`) and the others see it and leave it.
A vacuum never takes a file that a writer has written and not committed yet: the frequent one deletes only files that
the Delta log says were removed; the one that deletes what no log mentions (left by crashes and lost races) leaves
anything younger than a day.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from schemas.lake import FORGOTTEN
from services.prediction_log.erasure.erase import ErasureSweep, delete
from services.prediction_log.tables import DROPPED, PARTITIONED, STORE_ERRORS, fence, maintained_at, open_table, quoted
from shared.errors import DependencyUnavailable

logger = logging.getLogger(__name__)
TABLES = (*PARTITIONED, FORGOTTEN, DROPPED)


@dataclass(frozen=True)
class MaintenancePolicy:
    """When what is done. Files smaller than half the target are small."""

    interval: timedelta
    small_files: int
    target_bytes: int
    grace_hours: int
    orphan_hours: int


class Maintenance:
    """Keeps the lake at `uri`. All methods block and raise DependencyUnavailable."""

    def __init__(self, uri: str, policy: MaintenancePolicy) -> None:
        self._uri = uri.rstrip("/")
        self._upkeep = policy
        self._sweep = ErasureSweep(self._uri)
        self._orphans_at: dict[str, datetime] = {}

    def run(self, retention: Mapping[str, int | None], now: datetime) -> None:
        """One round over all tables.

        `retention`: days that a task's rows are kept, None: for ever.
        """
        failed: DependencyUnavailable | None = None
        try:
            self.expire(retention, now)
            if self._sweep.run():
                logger.warning("rows of forgotten people came late and were deleted")
        except DependencyUnavailable as error:  # Always second to rivals: that must not keep all from being compacted.
            failed = error
        for table in TABLES:
            delta = open_table(self._uri, table)
            if delta is not None:
                self.keep(table, delta, now)
        if failed is not None:
            raise failed

    def keep(self, table: str, delta: DeltaTable, now: datetime) -> bool:
        """Compact, checkpoint and vacuum one table; False: somebody else does, or did lately."""
        last = maintained_at(delta)
        if last is not None and timedelta(0) <= now - last < self._upkeep.interval * 0.9:
            return False
        if not fence(delta, now):
            return False
        try:
            self._compact(delta)
            delta = open_table(self._uri, table) or delta
            delta.create_checkpoint()
            delta.cleanup_metadata()
            self.vacuum(table, delta, now)
        except STORE_ERRORS as error:
            # A deletion or another fence was first, or the store is away. Nothing is half done: next time.
            logger.info("the maintenance of %s stopped and will be done next time: %s", table, error)
            return False
        return True

    def _compact(self, delta: DeltaTable) -> None:
        for partition in crowded(delta, self._upkeep.target_bytes // 2, self._upkeep.small_files):
            delta.optimize.compact(
                partition_filters=[(name, "=", value) for name, value in partition.items()] or None,
                target_size=self._upkeep.target_bytes,
                max_concurrent_tasks=1,
            )

    def vacuum(self, table: str, delta: DeltaTable, now: datetime) -> None:
        """Delete removed files after their readers' grace and, once in `orphan_hours`, orphans of that age."""
        grace, orphans = self._upkeep.grace_hours, self._upkeep.orphan_hours
        delta.vacuum(retention_hours=grace, dry_run=False, enforce_retention_duration=False)
        if now - self._orphans_at.get(table, datetime.min.replace(tzinfo=UTC)) >= timedelta(hours=orphans):
            delta.vacuum(retention_hours=orphans, dry_run=False, enforce_retention_duration=False, full=True)
            self._orphans_at[table] = now

    def expire(self, retention: Mapping[str, int | None], now: datetime) -> None:
        """Delete whole days that are older than their task keeps rows."""
        for table in PARTITIONED:
            delta = open_table(self._uri, table)
            if delta is None:
                continue
            oldest = oldest_days(delta)
            for task, days in retention.items():
                if days is None or task not in oldest:
                    continue
                first_kept = (now - timedelta(days=days)).astimezone(UTC).date()
                if oldest[task] < first_kept:
                    delete(self._uri, table, f"task = {quoted(task)} AND date < '{first_kept.isoformat()}'")


def _files(delta: DeltaTable) -> pl.DataFrame:
    return pl.DataFrame(pa.table(delta.get_add_actions(flatten=True)))


def crowded(delta: DeltaTable, small_bytes: int, at_least: int) -> list[dict[str, str]]:
    """The partitions with that many small files, as column → value; an unpartitioned table's is {}."""
    small = _files(delta).filter(pl.col("size_bytes") < small_bytes)
    columns = delta.metadata().partition_columns
    if not columns:
        return [{}] if small.height >= at_least else []
    keys = [pl.col(f"partition.{name}").cast(pl.String).alias(name) for name in columns]
    counted = small.group_by(keys).agg(pl.len().alias("files")).filter(pl.col("files") >= at_least)
    return list(counted.sort(columns).select(columns).iter_rows(named=True))


def oldest_days(delta: DeltaTable) -> dict[str, date]:
    """Task → its oldest date."""
    return dict(_files(delta).group_by("partition.task").agg(pl.col("partition.date").min()).iter_rows())
