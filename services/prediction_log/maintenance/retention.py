"""Retention: deletes whole days that are older than their task keeps rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import polars as pl
import pyarrow as pa

from services.prediction_log.erasure.erase import delete
from services.prediction_log.tables import PARTITIONED, open_table, quoted
from shared.privacy.retention import oldest_retained_moment
from shared.storage.media import MediaStore


def delete_expired(uri: str, retention_days: Mapping[str, int | None], now: datetime) -> None:
    """Delete each task's days past its retention; None keeps them for ever. Raises DependencyUnavailable."""
    for table in PARTITIONED:
        delta = open_table(uri, table)
        if delta is None:
            continue
        files = pl.DataFrame(pa.table(delta.get_add_actions(flatten=True)))
        oldest = dict(files.group_by("partition.task").agg(pl.col("partition.date").min()).iter_rows())
        for task, days in retention_days.items():
            if days is None or task not in oldest:
                continue
            first_day = oldest_retained_moment(days, now).date()
            if oldest[task] < first_day:
                delete(uri, table, f"task = {quoted(task)} AND date < '{first_day.isoformat()}'")


def delete_expired_media(media: MediaStore, retention_days: Mapping[str, int | None], now: datetime) -> None:
    """Delete the kept media of each task's days past its retention, late ones too. Raises DependencyUnavailable."""
    for task, days in retention_days.items():
        if days is not None:
            media.delete_before(task, oldest_retained_moment(days, now).date())
