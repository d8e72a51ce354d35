"""The lake on a real S3 server has the guarantees that it has on a folder."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.synchronize import Event

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError
from pyarrow import parquet
from pyarrow.fs import FileSelector

from schemas.base import utc_now
from schemas.lake import PREDICTIONS, REQUESTS
from services.prediction_log.erasure.erase import ErasureSweep, SubjectErasure, erase_subjects
from services.prediction_log.maintenance.compaction import MaintenancePolicy
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.parquet_files import filesystem
from services.prediction_log.storage import DeltaLake
from services.prediction_log.tables import create_table, open_table, storage_options
from shared.errors import DependencyUnavailable
from tests.integration.s3_server import S3Server
from tests.unit.prediction_log.deliveries import NOON, TASK, TOPICS, delivery, prediction, request
from tests.waiting import PATIENCE_SECONDS

POLICY = MaintenancePolicy(
    timedelta(minutes=10), small_files=4, target_bytes=1024 * 1024, grace_hours=0, orphan_hours=24
)
BATCHES, IN_A_BATCH = 8, 25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    server.make_bucket("lake")
    yield server
    server.stop()


@pytest.fixture
def lake(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return the URI of the test's own lake; its address and keys are only in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://lake/{request.node.name.replace('_', '-')}"


def opened(lake: str, table: str) -> DeltaTable:
    delta = open_table(lake, table)
    assert delta is not None
    return delta


def ids(lake: str, table: str = PREDICTIONS) -> list[str]:
    column = opened(lake, table).to_pyarrow_table(columns=["prediction_id"])["prediction_id"]
    return sorted(column.to_pylist())


def objects(lake: str, table: str) -> list[str]:
    found = filesystem(lake, table).get_file_info(FileSelector("", recursive=True))
    return sorted(file.path for file in found if file.is_file)


def objects_with(lake: str, table: str, text: str) -> list[str]:
    """Return the objects of the table, active or not, with `text` in a column or in their raw bytes."""
    store, found = filesystem(lake, table), []
    for path in objects(lake, table):
        data = store.open_input_file(path).read()
        columns = parquet.read_table(pa.BufferReader(data)).to_pylist() if path.endswith(".parquet") else ""
        if text.encode() in data or text in str(columns):
            found.append(path)
    return found


def test_of_two_commits_of_a_version_the_second_is_refused(lake: str) -> None:
    create_table(lake, PREDICTIONS)
    first, second = opened(lake, PREDICTIONS), opened(lake, PREDICTIONS)
    rows = first.to_pyarrow_table()
    once = CommitProperties(max_commit_retries=0, app_transactions=[Transaction("a", 1)])
    write_deltalake(first, rows, mode="append", commit_properties=once)
    with pytest.raises(CommitFailedError):
        write_deltalake(second, rows, mode="append", commit_properties=once)
    assert (storage_options(lake) or {})["aws_conditional_put"] == "etag", "set explicitly, not left to the default"


def is_compacted(lake: str) -> bool:
    table = open_table(lake, PREDICTIONS)
    return table is not None and any(commit["operation"] == "OPTIMIZE" for commit in table.history())


def write_partitions(lake: str, partitions: list[int], compacted: Event) -> None:
    """Append as a process of prediction_log that believes it owns these partitions.

    On a busy machine the writers would be done before the maintenance had won a single race, so they wait for it.
    """
    writer = DeltaLake(lake)
    for batch in range(BATCHES):
        if batch == BATCHES // 2:
            assert compacted.wait(PATIENCE_SECONDS), "the maintenance never ran beside the writers"
        offsets = range(batch * IN_A_BATCH, (batch + 1) * IN_A_BATCH)
        events = [delivery(prediction(f"p-{p}-{o}"), o, p) for p in partitions for o in offsets]
        while True:
            try:
                writer.append(PREDICTIONS, events)
                break
            except DependencyUnavailable:
                continue


def test_two_processes_that_share_a_partition_store_each_record_once_while_it_is_compacted(lake: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    compacted = spawn.Event()
    writers = [spawn.Process(target=write_partitions, args=(lake, part, compacted)) for part in ([0, 1], [1, 2])]
    for writer in writers:
        writer.start()
    now = utc_now()
    while any(writer.is_alive() for writer in writers):
        now += POLICY.interval
        Maintenance(lake, MaintenancePolicy(**{**vars(POLICY), "grace_hours": 1})).run({}, now)
        if is_compacted(lake):
            compacted.set()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert ids(lake) == sorted(f"p-{p}-{o}" for p in range(3) for o in range(BATCHES * IN_A_BATCH))
    positions = DeltaLake(lake).stored_offsets(PREDICTIONS, [(TOPICS[PREDICTIONS], p) for p in range(3)])
    assert set(positions.values()) == {BATCHES * IN_A_BATCH - 1}


def test_small_objects_are_compacted_and_the_old_ones_deleted(lake: str) -> None:
    writer = DeltaLake(lake)
    for offset in range(6):
        writer.append(PREDICTIONS, [delivery(prediction(f"p-{offset}"), offset)])
    store = filesystem(lake, PREDICTIONS)
    (file, *_) = [path for path in objects(lake, PREDICTIONS) if path.startswith("task=")]
    with store.open_output_stream(f"{file.rpartition('/')[0]}/uncommitted.parquet") as copy:
        copy.write(store.open_input_file(file).read())
    Maintenance(lake, POLICY).run({}, utc_now())
    data = [path for path in objects(lake, PREDICTIONS) if path.startswith("task=")]
    assert len(data) == 2 and any("uncommitted" in path for path in data)
    assert ids(lake) == [f"p-{offset}" for offset in range(6)]


def test_an_erased_person_is_in_no_object(lake: str) -> None:
    writer = DeltaLake(lake)
    hers = prediction("hers", user="ann", text="Zebedee ate it", answers=2)
    writer.append(PREDICTIONS, [delivery(hers, 0), delivery(prediction("bobs", user="bob"), 1)])
    writer.append(REQUESTS, [delivery(request("hers", user="ann"), 0), delivery(request("bobs", user="bob"), 1)])
    assert objects_with(lake, PREDICTIONS, "Zebedee")
    erase_subjects(lake, [SubjectErasure(TASK, "ann", NOON)])
    assert not ErasureSweep(lake).run()
    Maintenance(lake, POLICY).run({}, utc_now())
    assert objects_with(lake, PREDICTIONS, "Zebedee") == []
    assert (ids(lake), ids(lake, REQUESTS)) == (["bobs"], ["bobs"])
    assert DeltaLake(lake).append(PREDICTIONS, [delivery(hers, 2)]) == 0, "replayed"


def test_an_outage_raises_dependency_unavailable_and_loses_and_duplicates_no_row(lake: str, server: S3Server) -> None:
    writer = DeltaLake(lake)
    writer.append(PREDICTIONS, [delivery(prediction("p-0"), 0)])
    batch = [delivery(prediction(f"p-{offset}"), offset) for offset in range(2)]
    server.stop()
    try:
        with pytest.raises(DependencyUnavailable):
            writer.append(PREDICTIONS, batch)
    finally:
        server.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:  # Redelivered until it succeeds: a restarted server may accept requests before its disks are ready.
        try:
            assert writer.append(PREDICTIONS, batch) == 1
            break
        except DependencyUnavailable:
            assert time.monotonic() < deadline
    assert ids(lake) == ["p-0", "p-1"]
