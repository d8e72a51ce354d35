"""The lake is compacted and vacuumed without losing, doubling or keeping a row that it should not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from schemas.base import utc_now
from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from services.prediction_log.erasure.erase import ErasureRequest, ErasureSweep, delete, erase_subjects
from services.prediction_log.maintenance.compaction import MaintenancePolicy
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.tables import SCHEMAS, fence, maintained_at, quoted
from shared.errors import DependencyUnavailable
from tests.unit.prediction_log.lake_rows import NOON, TASK, feedback, ids, opened, prediction, request, write

POLICY = MaintenancePolicy(
    timedelta(minutes=10), small_files=4, target_bytes=1024 * 1024, grace_hours=0, orphan_hours=24
)
TEXT = "my cat Zebedee ate the Quibblesworth parcel"


def maintain(lake: Path, policy: MaintenancePolicy = POLICY, **retention: int | None) -> None:
    Maintenance(str(lake), policy).run(retention, utc_now())


def files_on_disk(lake: Path, table: str) -> list[Path]:
    return sorted(path for path in (lake / table).rglob("*.parquet") if "_delta_log" not in path.parts)


def written(lake: Path, files: int, **values: object) -> list[str]:
    names = [f"p{n}" for n in range(files)]
    for name in names:
        write(lake, PREDICTIONS, [prediction(name, **values)])
    return sorted(names)


def test_many_small_files_become_one_with_the_same_rows(tmp_path: Path) -> None:
    names = written(tmp_path, 6)
    write(tmp_path, PREDICTIONS, [prediction("yesterday", NOON - timedelta(days=1))])
    maintain(tmp_path)
    assert len(files_on_disk(tmp_path, PREDICTIONS)) == 2
    assert ids(tmp_path, PREDICTIONS) == [*names, "yesterday"]


def test_a_day_with_few_files_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path, 3)
    before = files_on_disk(tmp_path, PREDICTIONS)
    maintain(tmp_path)
    assert files_on_disk(tmp_path, PREDICTIONS) == before


def test_what_the_writers_committed_survives_checkpoint_and_log_cleanup(tmp_path: Path) -> None:
    written(tmp_path, 1)
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


def test_a_file_that_a_writer_has_not_committed_yet_survives_and_an_old_orphan_does_not(tmp_path: Path) -> None:
    written(tmp_path, 6)
    (some, *_) = files_on_disk(tmp_path, PREDICTIONS)
    fresh, crashed = some.with_name("part-fresh.parquet"), some.with_name("part-crashed.parquet")
    shutil.copy(some, fresh)
    shutil.copy(some, crashed)
    os.utime(crashed, (time.time() - 25 * 3_600,) * 2)
    maintain(tmp_path)
    assert not some.exists(), "it was compacted away and nobody is granted any grace"
    assert fresh.exists()
    assert not crashed.exists()


def test_a_replaced_file_stays_for_its_readers_until_their_grace_is_over(tmp_path: Path) -> None:
    written(tmp_path, 6)
    before = files_on_disk(tmp_path, PREDICTIONS)
    maintain(tmp_path, replace(POLICY, grace_hours=1))
    assert all(path.exists() for path in before)


def test_who_comes_second_within_the_interval_leaves_the_table_alone(tmp_path: Path) -> None:
    written(tmp_path, 1)
    maintain(tmp_path)
    written(tmp_path, 6)
    version = opened(tmp_path, PREDICTIONS).version()
    maintain(tmp_path)
    assert opened(tmp_path, PREDICTIONS).version() == version
    later = utc_now().replace(microsecond=0) + POLICY.interval
    Maintenance(str(tmp_path), POLICY).run({}, later)
    assert maintained_at(opened(tmp_path, PREDICTIONS)) == later


def test_of_two_that_see_the_table_unmaintained_one_may_compact(tmp_path: Path) -> None:
    written(tmp_path, 6)
    one, two = opened(tmp_path, PREDICTIONS), opened(tmp_path, PREDICTIONS)
    assert (fence(one, NOON), fence(two, NOON)) == (True, False)


@pytest.mark.parametrize("fenced", [True, False])
def test_a_compaction_begun_before_anothers_fence_does_not_double_the_rows(tmp_path: Path, fenced: bool) -> None:
    names = written(tmp_path, 6)
    paused = opened(tmp_path, PREDICTIONS)
    if fenced:
        maintain(tmp_path, replace(POLICY, grace_hours=1))
        with pytest.raises(CommitFailedError):
            paused.optimize.compact()
        assert ids(tmp_path, PREDICTIONS) == names
    else:  # Without it delta-rs takes both. If this fails, it has been mended there: then the fence can go.
        opened(tmp_path, PREDICTIONS).optimize.compact()
        paused.optimize.compact()
        assert ids(tmp_path, PREDICTIONS) == sorted(names * 2)


def test_a_fence_at_the_same_moment_still_fences(tmp_path: Path) -> None:
    written(tmp_path, 6)
    assert fence(opened(tmp_path, PREDICTIONS), NOON)
    paused = opened(tmp_path, PREDICTIONS)
    assert fence(opened(tmp_path, PREDICTIONS), NOON)
    with pytest.raises(CommitFailedError):
        paused.optimize.compact()


def test_rows_appended_and_deleted_during_a_compaction_are_in_and_out(tmp_path: Path) -> None:
    names = written(tmp_path, 6)
    compacting = opened(tmp_path, PREDICTIONS)
    assert fence(compacting, NOON)
    write(tmp_path, PREDICTIONS, [prediction("appended")])
    compacting.optimize.compact()
    assert ids(tmp_path, PREDICTIONS) == ["appended", *names]
    written(tmp_path, 6, user_hash="gone")
    compacting = opened(tmp_path, PREDICTIONS)
    delete(str(tmp_path), PREDICTIONS, "user_hash = 'gone'")
    with pytest.raises(CommitFailedError):
        compacting.optimize.compact()
    assert ids(tmp_path, PREDICTIONS) == ["appended", *names]


def test_days_older_than_a_task_keeps_leave_all_tables_and_other_tasks_stay(tmp_path: Path) -> None:
    now = utc_now()
    for days in (0, 6, 8):
        at = now - timedelta(days=days)
        for task in ("short", "long", "o'dd"):
            write(tmp_path, PREDICTIONS, [prediction(f"{task}-{days}", at, task=task)])
            write(tmp_path, FEEDBACK, [feedback(f"{task}-{days}", "p", at, task=task)])
            write(tmp_path, REQUESTS, [request(f"{task}-{days}", at, task=task)])
    Maintenance(str(tmp_path), POLICY).run({"short": 7, "long": None, "o'dd": 7, "unknown": 1}, now)
    kept = sorted([*(f"long-{d}" for d in (0, 6, 8)), *(f"{t}-{d}" for t in ("short", "o'dd") for d in (0, 6))])
    assert [ids(tmp_path, table) for table in (PREDICTIONS, FEEDBACK, REQUESTS)] == [kept] * 3


def seeded(lake: Path) -> None:
    """Ann's rows among others', some of them in files of their own; her text everywhere that text can be."""
    said = f'[{{"role": "user", "content": "{TEXT}"}}]'
    for name in ("ann-1", "ann-2"):
        write(
            lake,
            PREDICTIONS,
            [prediction(name, user_hash="ann", messages=said, answer=TEXT), prediction(f"bob-{name}")],
        )
    write(lake, PREDICTIONS, [prediction("ann-elsewhere", user_hash="ann", task="other", answer="kept")])
    write(
        lake, FEEDBACK, [feedback("by-her", "bob-ann-1", user_hash="ann", text=TEXT), feedback("by-bob", "bob-ann-1")]
    )
    write(lake, FEEDBACK, [feedback("of-hers", "ann-1", text=TEXT)])
    write(lake, REQUESTS, [request("ann-1", user_hash="ann"), request("ann-2", user_hash=None), request("bob")])


def holds(lake: Path, text: str) -> list[str]:
    """Files of the lake's folder, active or not, with `text` in a column or in their raw bytes."""
    found = []
    for path in (path for path in lake.rglob("*") if path.is_file()):
        columns = pq.ParquetFile(path).read().to_pylist() if path.suffix == ".parquet" else ""
        if text in str(columns) or text.encode() in path.read_bytes():
            found.append(path.name)
    return found


def test_after_forgetting_and_vacuum_no_file_has_the_persons_text(tmp_path: Path) -> None:
    seeded(tmp_path)
    assert holds(tmp_path, TEXT)
    assert not [name for name in holds(tmp_path, "Zebedee") if not name.endswith(".parquet")], "the log has no text"
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    maintain(tmp_path)
    assert holds(tmp_path, "Zebedee") == []
    assert ids(tmp_path, PREDICTIONS) == ["ann-elsewhere", "bob-ann-1", "bob-ann-2"]
    assert ids(tmp_path, FEEDBACK) == ["by-bob"]
    assert ids(tmp_path, REQUESTS) == ["bob"]


def test_a_person_is_remembered_as_forgotten_once_and_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(tmp_path)

    def crash(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr("services.prediction_log.erasure.erase.delete", crash)
        erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    assert "ann-1" in ids(tmp_path, PREDICTIONS)
    for _ in range(2):
        erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    assert opened(tmp_path, FORGOTTEN).to_pyarrow_table().to_pylist() == [
        {"task": TASK, "subject_hash": "ann", "occurred_at": NOON}
    ]
    assert "ann-1" not in ids(tmp_path, PREDICTIONS)


@pytest.mark.parametrize("deletions", range(4))
def test_a_crash_after_any_deletion_is_repaired_by_doing_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    seeded(tmp_path)
    left = deletions

    def until_killed(uri: str, table: str, predicate: str, metadata: Mapping[str, str] | None) -> None:
        nonlocal left
        if left == 0:
            raise RuntimeError("killed")
        left -= 1
        delete(uri, table, predicate, metadata)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr("services.prediction_log.erasure.erase.delete", until_killed)
        erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    maintain(tmp_path)
    assert holds(tmp_path, "Zebedee") == []


def test_a_row_that_came_after_the_deletion_is_swept(tmp_path: Path) -> None:
    seeded(tmp_path)
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    sweep = ErasureSweep(str(tmp_path))
    assert not sweep.run()
    write(tmp_path, PREDICTIONS, [prediction("ann-late", user_hash="ann", answer=TEXT), prediction("bob-late")])
    write(tmp_path, FEEDBACK, [feedback("late", "ann-late", text=TEXT)])
    assert sweep.run()
    assert ids(tmp_path, PREDICTIONS) == ["ann-elsewhere", "bob-ann-1", "bob-ann-2", "bob-late"]
    assert ids(tmp_path, FEEDBACK) == ["by-bob"]
    assert not sweep.run()


def test_what_a_forgotten_person_does_later_is_kept(tmp_path: Path) -> None:
    later = NOON + timedelta(microseconds=1)
    write(tmp_path, PREDICTIONS, [prediction("until", user_hash="ann"), prediction("after", later, user_hash="ann")])
    write(tmp_path, FEEDBACK, [feedback("after", "after", later, user_hash="ann")])
    write(tmp_path, FORGOTTEN, [{"task": TASK, "subject_hash": "ann", "occurred_at": NOON - timedelta(days=9)}])
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    assert not ErasureSweep(str(tmp_path)).run()
    assert (ids(tmp_path, PREDICTIONS), ids(tmp_path, FEEDBACK)) == (["after"], ["after"])
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", later)])
    assert (ids(tmp_path, PREDICTIONS), ids(tmp_path, FEEDBACK)) == ([], [])


def test_feedback_that_comes_after_its_prediction_was_deleted_is_swept(tmp_path: Path) -> None:
    seeded(tmp_path)
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    write(tmp_path, FEEDBACK, [feedback("late", "ann-1", NOON + timedelta(days=9), text=TEXT)])
    maintain(tmp_path)
    assert ids(tmp_path, FEEDBACK) == ["by-bob"]
    assert holds(tmp_path, "Zebedee") == []


def test_files_from_before_a_column_are_searched_too(tmp_path: Path) -> None:
    older = SCHEMAS[FEEDBACK].remove(SCHEMAS[FEEDBACK].get_field_index("user_hash"))
    yesterday = NOON - timedelta(days=1)
    rows = [feedback("old", "ann-1", text=TEXT), feedback("bobs", "bob-1", yesterday)]
    table = pa.Table.from_pylist(rows, schema=older)
    write_deltalake(str(tmp_path / FEEDBACK), table, partition_by=["task", "date"], name=FEEDBACK)
    write(tmp_path, PREDICTIONS, [prediction("ann-1", user_hash="ann")])
    opened(tmp_path, FEEDBACK).alter.add_columns([one for one in Schema.from_arrow(SCHEMAS[FEEDBACK]).fields][-2:-1])
    write(tmp_path, FEEDBACK, [feedback("new", "bob-1", user_hash="bob")])
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    assert not ErasureSweep(str(tmp_path)).run()
    assert ids(tmp_path, FEEDBACK) == ["bobs", "new"]


def test_a_sweep_searches_old_files_again_for_who_is_newly_forgotten(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("carl-1", user_hash="carl"), prediction("bob-1", user_hash="bob")])
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, "ann", NOON)])
    sweep = ErasureSweep(str(tmp_path))
    sweep.run()
    write(tmp_path, FORGOTTEN, [{"task": TASK, "subject_hash": "carl", "occurred_at": NOON}])
    assert sweep.run()
    assert ids(tmp_path, PREDICTIONS) == ["bob-1"]


@pytest.mark.parametrize("subject", ["ann' OR '1'='1", "a\\' OR 1=1 --", "'", "''", "an\nn", "ann%", "a\u2019n"])
def test_a_quote_in_an_identifier_ends_no_predicate(tmp_path: Path, subject: str) -> None:
    rows = [prediction("bob-1"), prediction(f"hers {subject}", user_hash=subject)]
    write(tmp_path, PREDICTIONS, rows)
    write(tmp_path, FEEDBACK, [feedback("of-hers", f"hers {subject}"), feedback("other", "bob-1")])
    erase_subjects(str(tmp_path), [ErasureRequest(TASK, subject, NOON)])
    assert ids(tmp_path, PREDICTIONS) == ["bob-1"]
    assert ids(tmp_path, FEEDBACK) == ["other"]


def test_many_are_forgotten_at_once_each_until_their_last_asking(tmp_path: Path) -> None:
    people = [f"user-{n}" for n in range(1_200)]
    rows = [prediction(f"p-{who}", user_hash=who) for who in people]
    write(tmp_path, PREDICTIONS, [*rows, prediction("after", NOON + timedelta(hours=1), user_hash="user-0")])
    asked = [ErasureRequest(TASK, who, at) for at in (NOON, NOON - timedelta(days=1)) for who in people]
    erase_subjects(str(tmp_path), asked)
    assert ids(tmp_path, PREDICTIONS) == ["after"]
    assert opened(tmp_path, FORGOTTEN).to_pyarrow_table().num_rows == len(people)


def test_a_quote_is_doubled() -> None:
    assert quoted("it's") == "'it''s'"


def test_a_deletion_that_meets_other_writers_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 6, user_hash="gone")
    stale = opened(tmp_path, PREDICTIONS)
    opened(tmp_path, PREDICTIONS).optimize.compact()
    answers: list[Callable[[], object]] = [lambda: stale, lambda: opened(tmp_path, PREDICTIONS)]
    monkeypatch.setattr("services.prediction_log.erasure.erase.open_table", lambda *_: answers.pop(0)())
    delete(str(tmp_path), PREDICTIONS, "user_hash = 'gone'")
    assert answers == []
    assert ids(tmp_path, PREDICTIONS) == []


def test_a_lake_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    written(tmp_path, 1)
    for path in (tmp_path / PREDICTIONS / "_delta_log").iterdir():
        path.write_text("torn")
    with pytest.raises(DependencyUnavailable):
        maintain(tmp_path)
