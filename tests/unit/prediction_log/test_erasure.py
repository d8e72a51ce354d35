"""After an erasure no row and no file of the lake has the person's text, whatever is late or crashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema, write_deltalake
from pyarrow.dataset import field

from schemas.lake import FEEDBACK, FORGOTTEN, PREDICTIONS, REQUESTS
from services.prediction_log.erasure.erase import ErasureSweep, SubjectErasure, delete, erase_subjects
from services.prediction_log.erasure.tombstones import Tombstones, add_tombstones
from services.prediction_log.tables import DROPPED, SCHEMAS, open_table, quoted
from tests.unit.prediction_log.lake_rows import (
    NOON,
    TASK,
    feedback,
    ids,
    maintain,
    opened,
    prediction,
    request,
    write,
    write_files,
)

TEXT = "my cat Zebedee ate the Quibblesworth parcel"


def seed(lake: Path) -> None:
    """Write Ann's rows among other people's, some in files of their own, with her text in every text column."""
    messages = f'[{{"role": "user", "content": "{TEXT}"}}]'
    for name in ("ann-1", "ann-2"):
        write(
            lake,
            PREDICTIONS,
            [prediction(name, user_hash="ann", messages=messages, answer=TEXT), prediction(f"bob-{name}")],
        )
    write(lake, PREDICTIONS, [prediction("ann-elsewhere", user_hash="ann", task="other", answer="other")])
    write(
        lake, FEEDBACK, [feedback("by-her", "bob-ann-1", user_hash="ann", text=TEXT), feedback("by-bob", "bob-ann-1")]
    )
    write(lake, FEEDBACK, [feedback("of-hers", "ann-1", text=TEXT)])
    write(lake, REQUESTS, [request("ann-1", user_hash="ann"), request("ann-2", user_hash=None), request("bob")])


def files_with(lake: Path, text: str) -> list[str]:
    """Return the files of the lake, active or not, with `text` in a column or in their raw bytes."""
    found = []
    for path in (path for path in lake.rglob("*") if path.is_file()):
        columns = pq.ParquetFile(path).read().to_pylist() if path.suffix == ".parquet" else ""
        if text in str(columns) or text.encode() in path.read_bytes():
            found.append(path.name)
    return found


def test_after_erasure_and_vacuum_no_file_has_the_persons_text(tmp_path: Path) -> None:
    seed(tmp_path)
    assert files_with(tmp_path, TEXT)
    assert not [name for name in files_with(tmp_path, "Zebedee") if not name.endswith(".parquet")], (
        "the log has no text"
    )
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    maintain(tmp_path)
    assert files_with(tmp_path, "Zebedee") == []
    assert ids(tmp_path, PREDICTIONS) == ["ann-elsewhere", "bob-ann-1", "bob-ann-2"]
    assert ids(tmp_path, FEEDBACK) == ["by-bob"]
    assert ids(tmp_path, REQUESTS) == ["bob"]


def test_an_erasure_request_is_stored_once_and_before_any_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(tmp_path)

    def crash(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr("services.prediction_log.erasure.erase.delete", crash)
        erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    assert "ann-1" in ids(tmp_path, PREDICTIONS)
    for _ in range(2):
        erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    assert opened(tmp_path, FORGOTTEN).to_pyarrow_table().to_pylist() == [
        {"task": TASK, "subject_hash": "ann", "occurred_at": NOON}
    ]
    assert "ann-1" not in ids(tmp_path, PREDICTIONS)


@pytest.mark.parametrize("deletions", range(4))
def test_a_crash_after_any_deletion_is_repaired_by_a_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    seed(tmp_path)
    remaining = deletions

    def until_killed(uri: str, table: str, predicate: str, metadata: Mapping[str, str] | None) -> None:
        nonlocal remaining
        if remaining == 0:
            raise RuntimeError("killed")
        remaining -= 1
        delete(uri, table, predicate, metadata)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr("services.prediction_log.erasure.erase.delete", until_killed)
        erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    maintain(tmp_path)
    assert files_with(tmp_path, "Zebedee") == []


def test_a_row_that_was_appended_after_the_deletion_is_swept(tmp_path: Path) -> None:
    seed(tmp_path)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    sweep = ErasureSweep(str(tmp_path))
    assert not sweep.run()
    write(tmp_path, PREDICTIONS, [prediction("ann-late", user_hash="ann", answer=TEXT), prediction("bob-late")])
    write(tmp_path, FEEDBACK, [feedback("late", "ann-late", text=TEXT)])
    assert sweep.run()
    assert ids(tmp_path, PREDICTIONS) == ["ann-elsewhere", "bob-ann-1", "bob-ann-2", "bob-late"]
    assert ids(tmp_path, FEEDBACK) == ["by-bob"]
    assert not sweep.run()


def test_a_prediction_that_is_appended_while_its_person_is_erased_leaves_no_feedback_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted without a tombstone: feedback that names nobody was nobody's then, and stayed."""
    seed(tmp_path)
    write(tmp_path, FEEDBACK, [feedback("of-late", "ann-late", text=TEXT)])

    def append_and_tombstone(uri: str, predictions: Sequence[tuple[str, str]]) -> None:
        add_tombstones(uri, predictions)
        monkeypatch.undo()
        write(tmp_path, PREDICTIONS, [prediction("ann-late", user_hash="ann", answer=TEXT)])

    monkeypatch.setattr("services.prediction_log.erasure.erase.add_tombstones", append_and_tombstone)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    maintain(tmp_path)
    assert ids(tmp_path, FEEDBACK) == ["by-bob"]
    assert files_with(tmp_path, "Zebedee") == []


def test_later_rows_of_an_erased_person_stay(tmp_path: Path) -> None:
    later = NOON + timedelta(microseconds=1)
    write(tmp_path, PREDICTIONS, [prediction("until", user_hash="ann"), prediction("after", later, user_hash="ann")])
    write(tmp_path, FEEDBACK, [feedback("after", "after", later, user_hash="ann")])
    write(tmp_path, FORGOTTEN, [{"task": TASK, "subject_hash": "ann", "occurred_at": NOON - timedelta(days=9)}])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    assert not ErasureSweep(str(tmp_path)).run()
    assert (ids(tmp_path, PREDICTIONS), ids(tmp_path, FEEDBACK)) == (["after"], ["after"])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", later)])
    assert (ids(tmp_path, PREDICTIONS), ids(tmp_path, FEEDBACK)) == ([], [])


def test_an_erased_prediction_stays_away_when_its_application_sends_it_again_under_its_own_id(tmp_path: Path) -> None:
    """Without a time of its own it is dated by the gateway, after the erasure."""
    seed(tmp_path)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    later = NOON + timedelta(days=9)
    again = [
        prediction("ann-1", later, user_hash="ann", variant="external"),
        prediction("ann-3", later, user_hash="ann", variant="external"),
        prediction("ann-4", later, user_hash="ann"),
    ]
    rows = pa.Table.from_pylist(again, schema=SCHEMAS[PREDICTIONS])
    assert Tombstones(str(tmp_path)).match(PREDICTIONS, rows).tolist() == [True, False, False]


@pytest.mark.parametrize("failing", [FORGOTTEN, DROPPED])
def test_a_writer_whose_reading_of_who_was_erased_failed_reads_again_and_forgets_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """It took the version for read: a redelivery of an erased person's rows was stored."""
    seed(tmp_path)
    rows = [feedback("by-her", "bob-ann-1", user_hash="ann"), feedback("of-hers", "ann-1"), feedback("by-bob", "bob")]
    batch = pa.Table.from_pylist(rows, schema=SCHEMAS[FEEDBACK])
    tombstones = Tombstones(str(tmp_path))
    assert tombstones.match(FEEDBACK, batch).tolist() == [False, False, False]
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    read = DeltaTable.to_pyarrow_table

    def time_out(delta: DeltaTable) -> pa.Table:
        if delta.metadata().name == failing:
            raise OSError("the object store timed out")
        return read(delta)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="timed out"):
        patched.setattr(DeltaTable, "to_pyarrow_table", time_out)
        tombstones.match(FEEDBACK, batch)
    assert tombstones.match(FEEDBACK, batch).tolist() == [True, True, False]


def test_a_writer_that_runs_learns_of_everybody_who_is_erased_after_its_last_batch(tmp_path: Path) -> None:
    seed(tmp_path)
    late = [prediction("ann-9", user_hash="ann"), prediction("bob-9", user_hash="bob")]
    batch = pa.Table.from_pylist(late, schema=SCHEMAS[PREDICTIONS])
    tombstones, found = Tombstones(str(tmp_path)), []
    for person in ("ann", "bob"):
        erase_subjects(str(tmp_path), [SubjectErasure(TASK, person, NOON)])
        found.append(tombstones.match(PREDICTIONS, batch).tolist())
    assert found == [[True, False], [True, True]]


def test_the_rows_of_a_heavy_user_are_deleted_day_by_day_and_each_file_is_rewritten_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slice of ids was of many days, and made a commit for each of these."""
    days, hours, rows = 4, 4, 10
    for hour in range(hours):  # A file of each day in each commit, so that they have no order.
        times = [NOON + timedelta(days=d, hours=hour, minutes=m) for d, m in product(range(days), range(rows))]
        hers = {f"{hour}-{number}": at for number, at in enumerate(times)}
        bobs = {f"bob-{hour}-{number}": at for number, at in enumerate(times[::rows])}
        made = [prediction(name, at, user_hash="ann") for name, at in hers.items()]
        write(tmp_path, PREDICTIONS, [*made, *(prediction(name, at) for name, at in bobs.items())])
        write(tmp_path, REQUESTS, [request(name, at, user_hash=None) for name, at in (hers | bobs).items()])
        write(tmp_path, FEEDBACK, [feedback(name, name, at) for name, at in (hers | bobs).items()])
    monkeypatch.setattr("services.prediction_log.erasure.erase._MAX_PREDICATE_TERMS", 2 * rows)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON + timedelta(days=days))])
    for table in (PREDICTIONS, REQUESTS, FEEDBACK):
        assert ids(tmp_path, table) == [f"bob-{hour}-{day}" for hour, day in product(range(hours), range(days))]
        deletions = [commit for commit in opened(tmp_path, table).history() if commit["operation"] == "DELETE"]
        removed = [int(commit["operationMetrics"]["num_removed_files"]) for commit in deletions]
        assert removed == [2] * (days * hours // 2), table
    assert opened(tmp_path, DROPPED).version() == 1, "all tombstones are one commit"


def test_no_file_of_another_task_or_of_a_day_after_the_request_is_read_to_erase_a_person(tmp_path: Path) -> None:
    later = NOON + timedelta(days=1)
    write(tmp_path, PREDICTIONS, [prediction("ann-1", user_hash="ann"), prediction("bob-1", user_hash="bob")])
    write(tmp_path, FEEDBACK, [feedback("of-hers", "ann-1", later), feedback("by-her", "bob-1", user_hash="ann")])
    write(tmp_path, PREDICTIONS, [prediction("elsewhere", user_hash="ann", task="other")])
    write(tmp_path, FEEDBACK, [feedback("elsewhere", "ann-1", task="other")])
    write(tmp_path, PREDICTIONS, [prediction("later", later, user_hash="ann")])
    for pattern in ("*/task=other/**/*.parquet", f"{PREDICTIONS}/**/date={later.date()}/*.parquet"):
        (*paths,) = tmp_path.glob(pattern)
        assert paths
        for path in paths:
            path.write_bytes(b"unreadable")
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    of_task = (field("task") == TASK) & (field("date") == NOON.date())
    assert opened(tmp_path, PREDICTIONS).to_pyarrow_table(filters=of_task)["prediction_id"].to_pylist() == ["bob-1"]
    assert opened(tmp_path, FEEDBACK).to_pyarrow_table(filters=field("task") == TASK).num_rows == 0


def test_feedback_that_was_appended_after_its_prediction_was_deleted_is_swept(tmp_path: Path) -> None:
    seed(tmp_path)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    write(tmp_path, FEEDBACK, [feedback("late", "ann-1", NOON + timedelta(days=9), text=TEXT)])
    maintain(tmp_path)
    assert ids(tmp_path, FEEDBACK) == ["by-bob"]
    assert files_with(tmp_path, "Zebedee") == []


def test_files_without_a_newer_column_are_searched_too(tmp_path: Path) -> None:
    older = SCHEMAS[FEEDBACK].remove(SCHEMAS[FEEDBACK].get_field_index("user_hash"))
    yesterday = NOON - timedelta(days=1)
    rows = [feedback("old", "ann-1", text=TEXT), feedback("bobs", "bob-1", yesterday)]
    table = pa.Table.from_pylist(rows, schema=older)
    write_deltalake(str(tmp_path / FEEDBACK), table, partition_by=["task", "date"], name=FEEDBACK)
    write(tmp_path, PREDICTIONS, [prediction("ann-1", user_hash="ann")])
    opened(tmp_path, FEEDBACK).alter.add_columns(Schema.from_arrow(SCHEMAS[FEEDBACK]).fields[-2:-1])
    write(tmp_path, FEEDBACK, [feedback("new", "bob-1", user_hash="bob")])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    assert not ErasureSweep(str(tmp_path)).run()
    assert ids(tmp_path, FEEDBACK) == ["bobs", "new"]


def test_a_sweep_searches_old_files_again_for_newly_erased_people(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction("carl-1", user_hash="carl"), prediction("bob-1", user_hash="bob")])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
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
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, subject, NOON)])
    assert ids(tmp_path, PREDICTIONS) == ["bob-1"]
    assert ids(tmp_path, FEEDBACK) == ["other"]


def test_many_people_are_erased_at_once_each_up_to_their_last_request(tmp_path: Path) -> None:
    people = [f"user-{n}" for n in range(1_200)]
    rows = [prediction(f"p-{who}", user_hash=who) for who in people]
    write(tmp_path, PREDICTIONS, [*rows, prediction("after", NOON + timedelta(hours=1), user_hash="user-0")])
    requests = [SubjectErasure(TASK, who, at) for at in (NOON, NOON - timedelta(days=1)) for who in people]
    erase_subjects(str(tmp_path), requests)
    assert ids(tmp_path, PREDICTIONS) == ["after"]
    assert opened(tmp_path, FORGOTTEN).to_pyarrow_table().num_rows == len(people)


def test_a_deletion_is_not_refused_by_what_a_busy_task_appends_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit of a writer between the look and the deletion would refuse it, and with it all later erasures."""
    seed(tmp_path)
    for table in (PREDICTIONS, FEEDBACK, REQUESTS):  # As the lake's own files are: by no id a file can be ruled out.
        properties = {"delta.dataSkippingStatsColumns": "occurred_at"}
        opened(tmp_path, table).alter.set_table_properties(properties)
    later = NOON + timedelta(minutes=5)

    def opened_before_an_append(uri: str, table: str) -> DeltaTable | None:
        delta = open_table(uri, table)
        row = {PREDICTIONS: prediction, FEEDBACK: partial(feedback, of="bob"), REQUESTS: request}.get(table)
        if row is not None:
            write(uri, table, [row("later", at=later)])
        return delta

    monkeypatch.setattr("services.prediction_log.erasure.erase.open_table", opened_before_an_append)
    monkeypatch.setattr("services.prediction_log.erasure.erase._MAX_COMMIT_ATTEMPTS", 1)
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    assert set(ids(tmp_path, PREDICTIONS)) == {"ann-elsewhere", "bob-ann-1", "bob-ann-2", "later"}
    assert set(ids(tmp_path, FEEDBACK)) == {"by-bob", "later"}
    assert set(ids(tmp_path, REQUESTS)) == {"bob", "later"}


def test_a_quote_is_doubled() -> None:
    assert quoted("it's") == "'it''s'"


def test_a_deletion_whose_commit_conflicts_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, 6, user_hash="gone")
    stale = opened(tmp_path, PREDICTIONS)
    opened(tmp_path, PREDICTIONS).optimize.compact()
    versions: list[Callable[[], object]] = [lambda: stale, lambda: opened(tmp_path, PREDICTIONS)]
    monkeypatch.setattr("services.prediction_log.erasure.erase.open_table", lambda *_: versions.pop(0)())
    delete(str(tmp_path), PREDICTIONS, "user_hash = 'gone'")
    assert versions == []
    assert ids(tmp_path, PREDICTIONS) == []
