"""Compaction, vacuum, erasure and roll-ups run while writers append: no row is lost, duplicated or left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

from schemas.base import utc_now
from schemas.lake import PREDICTIONS
from services.prediction_log.erasure.erase import SubjectErasure, erase_subjects
from services.prediction_log.maintenance.compaction import MaintenancePolicy
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.rollups.hourly import RollUps
from services.prediction_log.storage import DeltaLake
from services.prediction_log.tables import open_table
from shared.errors import DependencyUnavailable
from tests.unit.prediction_log.deliveries import NOON, TASK, delivery, prediction, stored_ids
from tests.waiting import PATIENCE_SECONDS

BATCHES, IN_A_BATCH = 16, 5
POLICY = MaintenancePolicy(
    timedelta(seconds=1), small_files=3, target_bytes=1024 * 1024, grace_hours=0, orphan_hours=24
)


def is_compacted(folder: Path) -> bool:
    table = open_table(str(folder), PREDICTIONS)
    return table is not None and any(commit["operation"] == "OPTIMIZE" for commit in table.history())


def retry(action: Callable[[], object]) -> None:
    """Retry while the store is unavailable, as the consumers do."""
    while True:
        try:
            action()
        except DependencyUnavailable:
            continue
        return


def write_partitions(
    folder: Path, partitions: list[int], user: str, half_way: Callable[[], object] = lambda: None
) -> None:
    """Append as a process of prediction_log that believes it owns these partitions."""
    writer = DeltaLake(str(folder))
    for batch in range(BATCHES):
        if batch == BATCHES // 2:
            half_way()
        offsets = range(batch * IN_A_BATCH, (batch + 1) * IN_A_BATCH)
        events = [
            delivery(prediction(f"p-{p}-{o}", NOON + timedelta(hours=o % 3), f"{user if o % 2 else 'bob'}"), o, p)
            for p in partitions
            for o in offsets
        ]
        retry(partial(writer.append, PREDICTIONS, events))


def test_maintenance_beside_two_writers_of_a_partition_loses_and_duplicates_no_row(tmp_path: Path) -> None:
    done, compacted = threading.Event(), threading.Event()
    last: dict[object, int] = {}
    counter = RollUps(str(tmp_path))

    def maintain() -> None:
        now = utc_now()
        while not done.is_set():
            now += POLICY.interval
            retry(partial(Maintenance(str(tmp_path), POLICY).run, {}, now))
            if is_compacted(tmp_path):
                compacted.set()

    def wait_for_compaction() -> None:
        """On a busy machine the writers would be done before the maintenance had won a single race."""
        assert compacted.wait(PATIENCE_SECONDS), "the maintenance never ran beside the writers"

    def count_hours() -> None:
        for hour in counter.pending():
            for event in counter.count(hour, NOON):
                last[event.hour] = event.predictions
            counter.published(hour)

    def count() -> None:
        while not done.is_set():
            retry(count_hours)

    with ThreadPoolExecutor(4) as pool:
        background = [pool.submit(maintain), pool.submit(count)]
        writers = [
            pool.submit(write_partitions, tmp_path, part, "ann", wait_for_compaction) for part in ([0, 1], [1, 2])
        ]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        for job in background:
            job.result()
    expected = sorted(f"p-{p}-{o}" for p in range(3) for o in range(BATCHES * IN_A_BATCH))
    assert stored_ids(tmp_path) == expected
    count_hours()
    assert sum(last.values()) == len(expected)


def test_a_person_erased_while_writers_append_is_erased_after_the_next_round(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        writer = pool.submit(write_partitions, tmp_path, [0], "ann")
        while not writer.done() and not (tmp_path / PREDICTIONS / "_delta_log" / f"{9:020d}.json").exists():
            pass
        retry(lambda: erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON + timedelta(days=1))]))
        writer.result()
    Maintenance(str(tmp_path), POLICY).run({}, utc_now() + POLICY.interval)
    assert stored_ids(tmp_path) == sorted(f"p-0-{o}" for o in range(0, BATCHES * IN_A_BATCH, 2))
