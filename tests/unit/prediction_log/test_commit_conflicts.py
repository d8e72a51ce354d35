"""Two writers of one partition, such as a zombie after a rebalance: commits conflict, and every row is stored once."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError
from pyarrow import parquet

from schemas.lake import PREDICTIONS
from services.prediction_log.erasure.erase import SubjectErasure, erase_subjects
from services.prediction_log.storage import DeltaLake
from services.prediction_log.tables import claim_maintenance
from shared.kafka.delivery import Delivery
from tests.unit.prediction_log.deliveries import NOON, TASK, TOPICS, delivery, numbered, prediction, stored_ids
from tests.waiting import PATIENCE_SECONDS

PARTITION = (TOPICS[PREDICTIONS], 0)
RECORDS, BATCH, WRITERS = 240, 8, 3
"""For other processes, on a busy machine."""
READY = "ready"
ROOT = Path(__file__).parents[3]


class Paused(DeltaLake):
    """Calls `before_commit` between reading the offsets and committing."""

    def __init__(self, folder: Path, before_commit: Callable[[], object]) -> None:
        super().__init__(str(folder))
        self._before_commit = before_commit

    def _commit(self, *arguments: Any) -> None:
        self._before_commit()
        super()._commit(*arguments)


def once(action: Callable[[], object]) -> Callable[[], object]:
    """Return a function that runs `action` at its first call only, so that a retry after a conflict is not delayed."""
    calls = iter([action])
    return lambda: next(calls, lambda: None)()


def names(count: int, partition: int = 0) -> list[str]:
    return sorted(f"p-{partition}-{n}" for n in range(count))


def test_delta_refuses_any_commit_on_a_version_that_is_not_the_newest(tmp_path: Path) -> None:
    """Compare-and-swap rests on this; delta-rs' own conflict check lets the commit of another application pass."""
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(0, 0)])
    stale, newer = DeltaTable(tmp_path / PREDICTIONS), DeltaTable(tmp_path / PREDICTIONS)
    rows = newer.to_pyarrow_table()
    write_deltalake(newer, rows, mode="append")
    strict = CommitProperties(max_commit_retries=0, app_transactions=[Transaction("another", 1)])
    with pytest.raises(CommitFailedError):
        stale.create_write_transaction([], "append", stale.schema(), ["task", "date"], commit_properties=strict)
    lenient = CommitProperties(max_commit_retries=1, app_transactions=[Transaction("another", 1)])
    stale.create_write_transaction([], "append", stale.schema(), ["task", "date"], commit_properties=lenient)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        pytest.param(range(0, 5), range(0, 5), id="the same records"),
        pytest.param(range(0, 5), range(0, 9), id="the zombie has fewer"),
        pytest.param(range(0, 9), range(0, 5), id="the zombie has more"),
    ],
)
def test_two_writers_that_read_the_same_offsets_store_each_record_once(
    tmp_path: Path, mine: range, theirs: range
) -> None:
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(1, 0)])
    meeting = threading.Barrier(2)
    writers = [Paused(tmp_path, once(lambda: meeting.wait(PATIENCE_SECONDS))) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        batches = [[numbered(0, n) for n in part] for part in (mine, theirs)]
        stored = list(pool.map(lambda writer, batch: writer.append(PREDICTIONS, batch), writers, batches))
    assert sum(stored) == 9 if len(mine) != len(theirs) else 5
    assert stored_ids(tmp_path) == sorted([*names(max(len(mine), len(theirs))), "p-1-0"])


def test_an_event_in_two_partitions_is_stored_once_by_two_concurrent_writers(tmp_path: Path) -> None:
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(3, 0)])
    meeting = threading.Barrier(2)
    writers = [Paused(tmp_path, once(lambda: meeting.wait(PATIENCE_SECONDS))) for _ in range(2)]
    twice = [prediction("a"), prediction("b")]
    batches = [[delivery(event, n, partition) for n, event in enumerate(twice)] for partition in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        stored = list(pool.map(lambda writer, batch: writer.append(PREDICTIONS, batch), writers, batches))
    assert sorted(stored) == [0, 2]
    assert stored_ids(tmp_path) == ["a", "b", "p-3-0"]


@pytest.mark.parametrize("change", ["compaction", "claim", "deletion", "another writer's row"])
def test_any_change_of_the_table_before_the_commit_loses_and_duplicates_no_row(tmp_path: Path, change: str) -> None:
    for offset in range(3):
        DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(0, offset)])

    def interfere() -> None:
        table = DeltaTable(tmp_path / PREDICTIONS)
        if change == "compaction":
            table.optimize.compact()
        elif change == "claim":
            assert claim_maintenance(table, NOON)
        elif change == "deletion":
            table.delete("prediction_id = 'p-0-1'")
        else:
            DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(2, 0)])

    lake = Paused(tmp_path, once(interfere))
    assert lake.append(PREDICTIONS, [numbered(0, n) for n in range(6)]) == 3
    expected = set(names(6)) | ({"p-2-0"} if change == "another writer's row" else set())
    assert stored_ids(tmp_path) == sorted(expected - ({"p-0-1"} if change == "deletion" else set()))


def test_a_writer_whose_commit_conflicted_commits_the_file_it_has_already_written(tmp_path: Path) -> None:
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(1, 0)])
    lake = Paused(tmp_path, once(lambda: DeltaLake(str(tmp_path)).append(PREDICTIONS, [numbered(1, 1)])))
    lake.append(PREDICTIONS, [numbered(0, 0)])
    assert len(list((tmp_path / PREDICTIONS).rglob("*.parquet"))) == 3, "one per commit"


def test_a_person_who_is_erased_while_a_commit_conflicts_is_in_no_file(tmp_path: Path) -> None:
    """What was written before the conflict has their text, and no commit would ever name it."""
    people = [delivery(prediction(name, user=name, text=f"the secret of {name}"), n) for n, name in enumerate("ab")]

    def erase() -> None:
        erase_subjects(str(tmp_path), [SubjectErasure(TASK, "a", NOON + timedelta(days=1))])
        assert claim_maintenance(DeltaTable(tmp_path / PREDICTIONS), NOON)

    assert Paused(tmp_path, once(erase)).append(PREDICTIONS, people) == 1
    (file,) = [path for path in (tmp_path / PREDICTIONS).rglob("*.parquet") if "_delta_log" not in path.parts]
    assert "the secret of b" in str(parquet.read_table(file).to_pylist())
    assert stored_ids(tmp_path) == ["b"]


def test_concurrent_processes_with_the_same_records_store_each_once_although_one_is_killed(tmp_path: Path) -> None:
    lake, go = tmp_path / "lake", tmp_path / "go"
    outputs = [tmp_path / f"writer-{number}" for number in range(WRITERS)]
    command = [sys.executable, "-m", "tests.unit.prediction_log.test_commit_conflicts", str(lake), str(go)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(output.open("wb")) for output in outputs]
        writers = [
            subprocess.Popen([*command, str(number)], stdout=file, stderr=file, cwd=ROOT)
            for number, file in enumerate(files)
        ]
        for writer in writers:
            stack.callback(writer.kill)
        until(lambda: all(READY in output.read_text() for output in outputs), outputs)
        go.touch()
        watching = DeltaLake(str(lake))
        until(lambda: watching.stored_offsets(PREDICTIONS, [PARTITION]).get(PARTITION, 0) >= RECORDS // 3, outputs)
        writers[0].kill()
        until(lambda: all(writer.poll() is not None for writer in writers), outputs)
    assert [writer.returncode for writer in writers] == [-signal.SIGKILL, 0, 0], printed(outputs)
    assert stored_ids(lake) == names(RECORDS)


def until(condition: Callable[[], bool], outputs: list[Path]) -> None:
    """Wait for a condition; on a timeout, fail with the writers' output."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s. {printed(outputs)}"
        time.sleep(0.01)


def printed(outputs: list[Path]) -> str:
    return "\n".join(f"{output.name}: {output.read_text()}" for output in outputs)


def write_all(lake: str, go: Path, number: int) -> None:
    """Append all records as a writer process, in batches of its own size, each delivered twice."""
    writer = DeltaLake(lake)
    print(READY, flush=True)
    while not go.exists():
        time.sleep(0.001)
    size = BATCH - number
    for first in range(0, RECORDS, size):
        batch: list[Delivery[Any]] = [numbered(0, n) for n in range(first, min(first + size, RECORDS))]
        writer.append(PREDICTIONS, batch)
        writer.append(PREDICTIONS, batch)
    if number == 0:  # It is killed, most often before it comes this far: whoever is to kill it may be slower.
        time.sleep(3_600)


if __name__ == "__main__":
    write_all(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
