"""Retention, compaction and vacuum lose and duplicate no row."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import CommitProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from schemas.base import utc_now
from schemas.lake import FEEDBACK, PREDICTIONS, REQUESTS
from services.prediction_log.erasure.erase import delete
from services.prediction_log.maintenance import compaction
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.tables import claim_maintenance, maintained_at
from shared.errors import DependencyUnavailable
from tests.unit.prediction_log.lake_rows import (
    NOON,
    POLICY,
    feedback,
    ids,
    maintain,
    opened,
    prediction,
    request,
    write,
    write_files,
)


def files_on_disk(lake: Path, table: str) -> list[Path]:
    return sorted(path for path in (lake / table).rglob("*.parquet") if "_delta_log" not in path.parts)


def test_many_small_files_become_one_with_the_same_rows(tmp_path: Path) -> None:
    names = write_files(tmp_path, 6)
    write(tmp_path, PREDICTIONS, [prediction("yesterday", NOON - timedelta(days=1))])
    maintain(tmp_path)
    assert len(files_on_disk(tmp_path, PREDICTIONS)) == 2
    assert ids(tmp_path, PREDICTIONS) == [*names, "yesterday"]


def test_a_day_with_few_files_is_not_compacted_until_it_is_over(tmp_path: Path) -> None:
    write_files(tmp_path, 3, at=utc_now())
    before = files_on_disk(tmp_path, PREDICTIONS)
    names = write_files(tmp_path, 2, at=utc_now() - timedelta(days=3))
    maintain(tmp_path)
    after = files_on_disk(tmp_path, PREDICTIONS)
    assert set(before) < set(after) and len(after) == len(before) + 1
    assert ids(tmp_path, PREDICTIONS) == sorted(["p0", "p1", "p2", *names])


def test_as_many_small_files_as_before_are_compacted_again(tmp_path: Path) -> None:
    maintenance = Maintenance(str(tmp_path), replace(POLICY, interval=timedelta(0)))
    for files in (4, 3, 3):  # Beside the one that the others became.
        write_files(tmp_path, files, at=utc_now())
        maintenance.run({}, utc_now())
        assert len(opened(tmp_path, PREDICTIONS).file_uris()) == 1


def test_what_does_not_fit_together_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, 2, at=utc_now() - timedelta(days=3))
    sized: list[object] = []
    monkeypatch.setattr(compaction, "sized_files", lambda *found: sized.append(found) or [])
    monkeypatch.setattr(compaction, "compacted_bytes", lambda files, target: 1)
    maintenance = Maintenance(str(tmp_path), replace(POLICY, interval=timedelta(0)))
    for _ in range(3):
        maintenance.run({}, utc_now())
    assert len(sized) == 1 and len(opened(tmp_path, PREDICTIONS).file_uris()) == 2


def test_committed_offsets_survive_checkpoint_and_log_cleanup(tmp_path: Path) -> None:
    write_files(tmp_path, 1, at=utc_now())
    offsets = CommitProperties(app_transactions=[Transaction("topic/0", 41)])
    delta = opened(tmp_path, PREDICTIONS)
    write_deltalake(delta, delta.to_pyarrow_table(), mode="append", commit_properties=offsets)
    log = tmp_path / PREDICTIONS / "_delta_log"
    for path in log.iterdir():
        os.utime(path, (time.time() - 3 * 86_400,) * 2)
    maintain(tmp_path)
    assert not (log / f"{0:020d}.json").exists()
    assert opened(tmp_path, PREDICTIONS).transaction_version("topic/0") == 41
    assert ids(tmp_path, PREDICTIONS) == ["p0", "p0"]


def test_a_vacuum_deletes_an_old_orphan_and_no_file_that_a_writer_may_still_commit(tmp_path: Path) -> None:
    write_files(tmp_path, 6)
    (file, *_) = files_on_disk(tmp_path, PREDICTIONS)
    fresh, crashed = file.with_name("part-fresh.parquet"), file.with_name("part-crashed.parquet")
    shutil.copy(file, fresh)
    shutil.copy(file, crashed)
    os.utime(crashed, (time.time() - 25 * 3_600,) * 2)
    maintain(tmp_path)
    assert not file.exists(), "it was compacted, with a grace of 0 hours"
    assert fresh.exists()
    assert not crashed.exists()


def test_what_was_erased_leaves_the_disk_although_a_damaged_file_cannot_be_compacted(tmp_path: Path) -> None:
    write_files(tmp_path, 6)
    write(tmp_path, PREDICTIONS, [prediction("erased", NOON - timedelta(days=1))])
    (of_erased,) = (
        path for path in files_on_disk(tmp_path, PREDICTIONS) if f"{NOON - timedelta(days=1):%F}" in str(path)
    )
    delete(str(tmp_path), PREDICTIONS, "prediction_id = 'erased'")
    damaged = next(path for path in files_on_disk(tmp_path, PREDICTIONS) if path != of_erased)
    damaged.write_bytes(damaged.read_bytes()[:100])
    maintain(tmp_path)
    assert not of_erased.exists()


def test_a_replaced_file_stays_for_its_readers_until_their_grace_is_over(tmp_path: Path) -> None:
    write_files(tmp_path, 6)
    before = files_on_disk(tmp_path, PREDICTIONS)
    maintain(tmp_path, replace(POLICY, grace_hours=1))
    assert all(path.exists() for path in before)


def test_a_second_process_within_the_interval_skips_the_table(tmp_path: Path) -> None:
    write_files(tmp_path, 1)
    maintain(tmp_path)
    write_files(tmp_path, 6)
    version = opened(tmp_path, PREDICTIONS).version()
    maintain(tmp_path)
    assert opened(tmp_path, PREDICTIONS).version() == version
    later = utc_now().replace(microsecond=0) + POLICY.interval
    Maintenance(str(tmp_path), POLICY).run({}, later)
    assert maintained_at(opened(tmp_path, PREDICTIONS)) == later


def test_of_two_concurrent_processes_one_may_compact(tmp_path: Path) -> None:
    write_files(tmp_path, 6)
    first, second = opened(tmp_path, PREDICTIONS), opened(tmp_path, PREDICTIONS)
    assert (claim_maintenance(first, NOON), claim_maintenance(second, NOON)) == (True, False)


@pytest.mark.parametrize("claimed", [True, False])
def test_a_compaction_that_began_before_another_claim_duplicates_no_rows(tmp_path: Path, claimed: bool) -> None:
    names = write_files(tmp_path, 6)
    paused = opened(tmp_path, PREDICTIONS)
    if claimed:
        maintain(tmp_path, replace(POLICY, grace_hours=1))
        with pytest.raises(CommitFailedError):
            paused.optimize.compact()
        assert ids(tmp_path, PREDICTIONS) == names
    else:  # Without it delta-rs accepts both. If this fails, delta-rs was fixed and the claim can be removed.
        opened(tmp_path, PREDICTIONS).optimize.compact()
        paused.optimize.compact()
        assert ids(tmp_path, PREDICTIONS) == sorted(names * 2)


def test_a_fence_at_the_same_moment_still_fences(tmp_path: Path) -> None:
    write_files(tmp_path, 6)
    assert claim_maintenance(opened(tmp_path, PREDICTIONS), NOON)
    paused = opened(tmp_path, PREDICTIONS)
    assert claim_maintenance(opened(tmp_path, PREDICTIONS), NOON)
    with pytest.raises(CommitFailedError):
        paused.optimize.compact()


def test_rows_appended_during_a_compaction_stay_and_deleted_ones_are_gone(tmp_path: Path) -> None:
    names = write_files(tmp_path, 6)
    compacting = opened(tmp_path, PREDICTIONS)
    assert claim_maintenance(compacting, NOON)
    write(tmp_path, PREDICTIONS, [prediction("appended")])
    compacting.optimize.compact()
    assert ids(tmp_path, PREDICTIONS) == ["appended", *names]
    write_files(tmp_path, 6, user_hash="gone")
    compacting = opened(tmp_path, PREDICTIONS)
    delete(str(tmp_path), PREDICTIONS, "user_hash = 'gone'")
    with pytest.raises(CommitFailedError):
        compacting.optimize.compact()
    assert ids(tmp_path, PREDICTIONS) == ["appended", *names]


def test_days_past_their_retention_are_deleted_from_all_tables_and_other_tasks_stay(tmp_path: Path) -> None:
    now = utc_now()
    for days in (0, 6, 8):
        at = now - timedelta(days=days)
        for task in ("short", "long", "o'dd"):
            write(tmp_path, PREDICTIONS, [prediction(f"{task}-{days}", at, task=task)])
            write(tmp_path, FEEDBACK, [feedback(f"{task}-{days}", "p", at, task=task)])
            write(tmp_path, REQUESTS, [request(f"{task}-{days}", at, task=task)])
    Maintenance(str(tmp_path), POLICY).run({"short": 7, "long": None, "o'dd": 7, "unknown": 1}, now)
    retained = sorted([*(f"long-{d}" for d in (0, 6, 8)), *(f"{t}-{d}" for t in ("short", "o'dd") for d in (0, 6))])
    assert [ids(tmp_path, table) for table in (PREDICTIONS, FEEDBACK, REQUESTS)] == [retained] * 3


def test_an_unavailable_lake_raises_dependency_unavailable(tmp_path: Path) -> None:
    write_files(tmp_path, 1)
    for path in (tmp_path / PREDICTIONS / "_delta_log").iterdir():
        path.write_text("torn")
    with pytest.raises(DependencyUnavailable):
        maintain(tmp_path)
