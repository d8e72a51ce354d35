"""What arrives in one turn of the event loop is written together, and fails or not by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.gateway.recording.group_commit import GroupCommit
from shared.errors import InvalidMessage
from shared.spool import Record, SpoolUnavailable
from tests.waiting import PATIENCE_SECONDS


class Spool:
    """What was written, a list for each write. `refuses`: a value that no write takes, and the error."""

    def __init__(self) -> None:
        self.writes: list[list[bytes]] = []
        self.refuses: dict[bytes, Exception] = {}

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.value in self.refuses:
                raise self.refuses[record.value]
        self.writes.append([record.value for record in records])


def record(value: bytes) -> Record:
    return Record("topic", b"key", value)


async def busy_group(spool: Spool) -> GroupCommit:
    """A group whose last turn had several requests; they are in no list of writes."""
    group = GroupCommit(spool.write)
    group.append([])
    group.append([])
    await asyncio.sleep(0)
    spool.writes.clear()
    return group


def waiting(written: asyncio.Future[None] | None) -> asyncio.Future[None]:
    assert written is not None
    return written


async def test_the_records_of_one_turn_are_one_write_in_their_order() -> None:
    spool = Spool()
    group = await busy_group(spool)
    await asyncio.gather(
        waiting(group.append([record(b"1"), record(b"2")])), waiting(group.append([record(b"3")]))
    )  # fmt: skip
    await waiting(group.append([record(b"4")]))
    assert spool.writes == [[b"1", b"2", b"3"], [b"4"]]


async def test_a_request_that_is_alone_is_written_at_once() -> None:
    spool = Spool()
    group = GroupCommit(spool.write)
    for value in (b"1", b"2", b"3"):
        assert group.append([record(value)]) is None
        await asyncio.sleep(0)
    assert spool.writes == [[b"1"], [b"2"], [b"3"]]


async def test_the_second_of_a_turn_shows_that_requests_are_many_until_one_is_alone_again() -> None:
    spool = Spool()
    group = GroupCommit(spool.write)
    assert group.append([record(b"1")]) is None
    await asyncio.gather(waiting(group.append([record(b"2")])), waiting(group.append([record(b"3")])))
    await waiting(group.append([record(b"4")]))
    assert group.append([record(b"5")]) is None
    assert spool.writes == [[b"1"], [b"2", b"3"], [b"4"], [b"5"]]


async def test_a_request_that_is_alone_and_refused_fails_at_once() -> None:
    spool = Spool()
    spool.refuses[b"1"] = SpoolUnavailable("full")
    group = GroupCommit(spool.write)
    with pytest.raises(SpoolUnavailable):
        group.append([record(b"1")])
    await waiting(group.append([record(b"2")]))
    assert spool.writes == [[b"2"]]


async def test_nothing_is_done_before_it_is_written() -> None:
    spool = Spool()
    group = await busy_group(spool)
    written = waiting(group.append([record(b"1")]))
    assert not written.done()
    assert spool.writes == []
    group.flush()
    assert written.done()
    assert spool.writes == [[b"1"]]


@pytest.mark.parametrize("error", [SpoolUnavailable("full"), InvalidMessage("too large"), RuntimeError("a fault")])
async def test_a_request_that_cannot_be_written_fails_alone(error: Exception) -> None:
    spool = Spool()
    spool.refuses[b"2"] = error
    group = await busy_group(spool)
    outcomes = await asyncio.gather(
        waiting(group.append([record(b"1")])),
        waiting(group.append([record(b"2"), record(b"2+")])),
        waiting(group.append([record(b"3")])),
        return_exceptions=True,
    )
    assert outcomes == [None, error, None]
    assert spool.writes == [[b"1"], [b"3"]]


async def test_a_client_that_leaves_neither_takes_its_records_back_nor_holds_up_others() -> None:
    spool = Spool()
    group = await busy_group(spool)
    left, stays = waiting(group.append([record(b"1")])), waiting(group.append([record(b"2")]))
    left.cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await stays
    assert spool.writes == [[b"1", b"2"]]


async def test_a_client_that_leaves_does_not_hide_that_others_failed() -> None:
    spool = Spool()
    spool.refuses = {value: SpoolUnavailable("full") for value in (b"1", b"2")}
    group = await busy_group(spool)
    left, stays = waiting(group.append([record(b"1")])), waiting(group.append([record(b"2")]))
    left.cancel()
    with pytest.raises(SpoolUnavailable):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await stays


async def test_many_bytes_do_not_wait_for_the_end_of_the_turn() -> None:
    spool = Spool()
    group = await busy_group(spool)
    large = b"x" * 40_000
    first, second = waiting(group.append([record(large)])), waiting(group.append([record(large)]))
    assert first.done()
    assert second.done()
    third = waiting(group.append([record(b"3")]))
    assert not third.done()
    await third
    assert spool.writes == [[large, large], [b"3"]]
