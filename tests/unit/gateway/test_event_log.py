"""The event log on a real spool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from schemas.predictions import FeedbackGiven
from services.gateway.formats.media import InlineMedia
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.event_log import SpoolEventLog, encode_event
from services.gateway.recording.media_folder import MediaFolder
from shared.privacy.encryption import load_cipher
from shared.spool import Backlog, Record, Spool, SpoolOptions, SpoolReader, SpoolUnavailable, Sync

MEDIA = InlineMedia("media/t/2026-01-01/anonymous/a", b"{}", 1_790_000_000.0, "QUJD", 0)
Open = Callable[[SpoolOptions], SpoolEventLog]


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[list[SpoolEventLog]]:
    opened: list[SpoolEventLog] = []
    yield opened
    for log in opened:
        await log.close()


async def opened(tmp_path: Path, logs: list[SpoolEventLog], **options: Any) -> tuple[SpoolEventLog, Metrics]:
    metrics = Metrics()
    log = SpoolEventLog(tmp_path / "spool", tmp_path / "secrets", SpoolOptions(**options), metrics)
    await log.start()
    logs.append(log)
    return log, metrics


def event(text: str = "Maria Gonzalez") -> FeedbackGiven:
    return FeedbackGiven(task="t", task_revision="r", prediction_id="p-1", kind="edited", text=text)


def encoded(*events: FeedbackGiven) -> list[Record]:
    return [encode_event(event) for event in events]


async def test_an_event_is_spooled_as_the_record_for_kafka(tmp_path: Path, logs: list[SpoolEventLog]) -> None:
    log, _ = await opened(tmp_path, logs)
    first, second = event("one"), event("two")
    await log.append(encoded(first, second))
    spooled = SpoolReader(log.slot, load_cipher(tmp_path / "secrets", "spool")).read(10, 10_000)
    assert [(s.record.topic, s.record.key) for s in spooled] == [("feedback.given.v1", b"p-1")] * 2
    assert [FeedbackGiven.model_validate_json(s.record.value) for s in spooled] == [first, second]


async def test_the_events_of_requests_that_end_together_are_one_frame(
    tmp_path: Path, logs: list[SpoolEventLog]
) -> None:
    log, metrics = await opened(tmp_path, logs)
    events = [event(str(number)) for number in range(20)]
    await asyncio.gather(*(log.append(encoded(each)) for each in events))
    assert (
        metrics.registry.get_sample_value("ratchet_gateway_spool_append_seconds_count") == 2.0
    )  # The first, the rest.
    spooled = SpoolReader(log.slot, load_cipher(tmp_path / "secrets", "spool")).read(100, 100_000)
    assert [FeedbackGiven.model_validate_json(s.record.value) for s in spooled] == events


async def test_with_sync_always_each_waits_for_a_sync_of_its_own_write(
    tmp_path: Path, logs: list[SpoolEventLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = await opened(tmp_path, logs, sync=Sync.ALWAYS)
    written: list[int] = []
    monkeypatch.setattr(Spool, "append", lambda self, records: written.append(len(records)))

    async def synced(self: Spool) -> None:
        waited_for.append(len(written))

    waited_for: list[int] = []
    monkeypatch.setattr(Spool, "synced", synced)
    await asyncio.gather(*(log.append(encoded(event(str(number)))) for number in range(3)))
    assert waited_for == [1, 2, 3]  # In the step of the write: a later one may be of another file.


async def test_the_end_of_the_process_writes_what_waits(tmp_path: Path, logs: list[SpoolEventLog]) -> None:
    log, _ = await opened(tmp_path, logs)
    slot, waiting = log.slot, [asyncio.ensure_future(log.append(encoded(event(text)))) for text in ("first", "last")]
    await asyncio.sleep(0)  # The appends have begun; their turn has not ended.
    await log.close()
    spooled = SpoolReader(slot, load_cipher(tmp_path / "secrets", "spool")).read(10, 10_000)
    assert [FeedbackGiven.model_validate_json(s.record.value).text for s in spooled] == ["first", "last"]
    await asyncio.gather(*waiting)


async def test_spool_files_are_encrypted(tmp_path: Path, logs: list[SpoolEventLog]) -> None:
    log, _ = await opened(tmp_path, logs)
    await log.append(encoded(event("Maria Gonzalez, +1 415-555-0132")))
    files = [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 200
    for path in files:
        assert b"Gonzalez" not in path.read_bytes()
        assert b"prediction_id" not in path.read_bytes()


async def test_a_full_spool_counts_the_refusal_and_loses_nothing(tmp_path: Path, logs: list[SpoolEventLog]) -> None:
    log, metrics = await opened(tmp_path, logs, max_bytes=2_000)
    await log.append(encoded(event("a" * 500)))
    with pytest.raises(SpoolUnavailable):
        await log.append(encoded(event("b" * 500), event("c" * 1_000)))
    assert metrics.registry.get_sample_value("ratchet_gateway_spool_refusals_total") == 1.0
    spooled = SpoolReader(log.slot, load_cipher(tmp_path / "secrets", "spool")).read(10, 10_000)
    assert [FeedbackGiven.model_validate_json(s.record.value).text for s in spooled] == ["a" * 500]
    assert 0.3 < log.fullness < 1.0


async def test_requests_that_end_together_are_all_refused_while_the_spool_is_full(
    tmp_path: Path, logs: list[SpoolEventLog]
) -> None:
    log, metrics = await opened(tmp_path, logs, max_bytes=2_000)
    appends = (log.append(encoded(event("a" * 3_000))) for _ in range(3))
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [SpoolUnavailable] * 3
    assert metrics.registry.get_sample_value("ratchet_gateway_spool_refusals_total") == 3.0


async def test_refusals_are_logged_but_not_for_every_request(
    tmp_path: Path, logs: list[SpoolEventLog], caplog: pytest.LogCaptureFixture
) -> None:
    log, _ = await opened(tmp_path, logs, max_bytes=2_000)
    for _ in range(3):
        with pytest.raises(SpoolUnavailable):
            await log.append(encoded(event("a" * 3_000)))
    assert "its limit is reached" in log.problem
    assert [(r.levelname, log.problem in r.message) for r in caplog.records] == [("WARNING", True)]
    await log.append(encoded(event("a")))
    assert log.problem == ""


async def test_the_spool_is_full_when_an_event_has_waited_too_long(tmp_path: Path, logs: list[SpoolEventLog]) -> None:
    log, metrics = await opened(tmp_path, logs, max_age_seconds=0.05)
    await log.append(encoded(event()))
    await asyncio.sleep(0.1)
    with pytest.raises(SpoolUnavailable, match="s old: its limit is reached"):
        await log.append(encoded(event()))
    assert metrics.registry.get_sample_value("ratchet_gateway_spool_refusals_total") == 1.0
    assert log.fullness > 1.0


async def test_each_gateway_has_its_own_slot_and_reuses_a_dead_gateways(
    tmp_path: Path, logs: list[SpoolEventLog]
) -> None:
    first, _ = await opened(tmp_path, logs)
    second, _ = await opened(tmp_path, logs)
    assert first.slot != second.slot
    slot = first.slot
    await first.append(encoded(event()))
    await first.close()
    third, _ = await opened(tmp_path, logs)
    assert third.slot == slot
    backlog = third.backlog
    assert backlog is not None
    assert backlog.bytes > 0


async def test_a_client_that_leaves_while_its_media_are_written_does_not_undo_the_record(tmp_path: Path) -> None:
    written = asyncio.Event()

    class SlowFolder(MediaFolder):
        async def write(self, media: Collection[InlineMedia]) -> None:
            await written.wait()

    folder = SlowFolder(tmp_path / "media", tmp_path / "secrets", 2**30)
    log = SpoolEventLog(tmp_path / "spool", tmp_path / "secrets", SpoolOptions(), Metrics(), folder)
    await log.start()
    appending = asyncio.create_task(log.append(encoded(event("with a picture")), [MEDIA]))
    await asyncio.sleep(0)
    appending.cancel()
    await asyncio.gather(appending, return_exceptions=True)
    assert log.backlog == Backlog(0, None)  # The event never comes before its media.
    written.set()
    await asyncio.sleep(0.01)
    assert log.backlog.bytes > 0
    await log.close()


async def test_an_event_whose_media_find_no_room_is_refused_counted_and_reported(tmp_path: Path) -> None:
    metrics = Metrics()
    folder = MediaFolder(tmp_path / "media", tmp_path / "secrets", 1)
    log = SpoolEventLog(tmp_path / "spool", tmp_path / "secrets", SpoolOptions(), metrics, folder)
    await log.start()
    with pytest.raises(SpoolUnavailable):
        await log.append(encoded(event("with a picture")), [MEDIA])
    assert log.backlog == Backlog(0, None)
    assert "limit is reached" in log.problem
    assert metrics.spool_refusals._value.get() == 1
    await log.append(encoded(event("without one")))
    assert not log.problem
    await log.close()
