"""What shadow decides and spends, in a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from schemas.predictions import SubjectForgotten
from schemas.rollouts import RolloutChanged
from services.shadow import replays
from services.shadow.budget import Considered
from services.shadow.clients import Replay
from services.shadow.domain import Outcome, Request
from services.shadow.main import MIGRATIONS
from services.shadow.storage import PostgresDecisions, Summary
from shared.errors import DependencyUnavailable, Paused
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.unit.shadow.fakes import CUTOFF, SPEC, BothArms, Shadow, delivery, prediction, rollout
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack


class Database:
    """A schema of the test's own. Each `decisions` has connections of its own, as a restarted process has."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.schema = settings, f"shadow_{uuid4().hex[:8]}"
        self.made: list[PostgresDecisions] = []

    def decisions(self) -> PostgresDecisions:
        self.made.append(PostgresDecisions(build_engine(self.settings, self.schema), 4))
        return self.made[-1]

    async def rows(self, query: str) -> list[Any]:
        async with self.decisions()._engine.begin() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]


@pytest.fixture
async def database(stack_settings: Settings) -> AsyncIterator[Database]:
    made = Database(stack_settings)
    await migrate(stack_settings, made.schema, MIGRATIONS)
    yield made
    async with made.decisions()._engine.begin() as connection:
        await connection.execute(text(f'DROP SCHEMA "{made.schema}" CASCADE'))
    for decisions in made.made:
        await decisions._engine.dispose()


def requests(numbers: Sequence[int], partition: int = 0, under: RolloutChanged | None = None) -> list[Considered]:
    """Requests of 40 tokens each, of a day of 20 times as many."""
    return [Considered(delivery(prediction(n), n, partition), under or rollout()) for n in numbers]


def numbers(decided: Sequence[Considered]) -> list[int]:
    return [request.delivery.offset for request in decided]


async def test_spending_survives_a_restart_and_is_not_repeated_by_a_redelivery(database: Database) -> None:
    first = database.decisions()
    assert numbers(await first.decide(requests(range(15)), CUTOFF)) == list(range(15))
    await first.finish(requests([0])[0], Outcome.PAIR)
    restarted = database.decisions()
    assert numbers(await restarted.decide(requests(range(15)), CUTOFF)) == list(range(1, 15))
    assert await database.rows("SELECT task, tokens FROM days") == [(SPEC.name, 600)]
    assert await database.rows("SELECT task, requests FROM minutes") == [(SPEC.name, 15)]
    assert numbers(await restarted.decide(requests(range(10, 25)), CUTOFF)) == [*range(10, 15), *range(15, 20)]
    assert await restarted.decide(requests(range(20, 25)), CUTOFF) == []
    assert numbers(await restarted.decide(requests(range(25, 30)), CUTOFF + timedelta(days=1))) == list(range(25, 30))


async def test_one_rollouts_backlog_leaves_the_decisions_of_another_alone(database: Database) -> None:
    """Each process reads one backlog. What is far ahead in the same partition had what is behind asked once more."""
    decisions, others = database.decisions(), rollout().model_copy(update={"rollout_id": "rollout-2", "task": "other"})

    def backlog(numbers: Sequence[int], under: RolloutChanged | None = None) -> list[Considered]:
        return [replace(request, from_backlog=True) for request in requests(numbers, under=under)]

    behind = backlog(range(10_000, 10_005))
    assert numbers(await decisions.decide(behind, CUTOFF)) == list(range(10_000, 10_005))
    for request in behind[:3]:
        await decisions.finish(request, Outcome.PAIR)
    await decisions.decide(backlog([50_000], others), CUTOFF)
    assert numbers(await decisions.decide(behind, CUTOFF)) == [10_003, 10_004]


async def test_what_a_dropped_backlog_had_to_replay_waits_no_more(database: Database) -> None:
    """`ratchet shadow status` showed it for ever: of an ended rollout nothing is decided again."""
    decisions = database.decisions()
    await decisions.decide(deferred([1, 2]), CUTOFF)
    await decisions.decide([replace(request, from_backlog=True) for request in requests([1, 2])], CUTOFF)
    (backlog,) = await decisions.backlogs()
    (before,) = await decisions.summaries(CUTOFF)
    assert before.requests["waiting"] == 2
    await decisions.drop(backlog)
    assert all("waiting" not in summary.requests for summary in await decisions.summaries(CUTOFF))


async def test_each_request_is_counted_once_by_what_became_of_it(database: Database) -> None:
    decisions = database.decisions()
    for _ in range(2):
        await decisions.decide(requests(range(25)), CUTOFF)
        for request in requests(range(3)):
            await decisions.finish(request, Outcome.PAIR)
    await decisions.finish(requests([3])[0], Outcome.VOID)
    await decisions.decide(deferred([30, 33], partition=1), CUTOFF)
    assert await database.decisions().summaries(CUTOFF) == [
        Summary(SPEC.name, "rollout-1", 800, {"tokens": 5, "pair": 3, "void": 1, "waiting": 16, "backlog": 4})
    ]


async def test_two_processes_share_one_budget(database: Database) -> None:
    both = database.decisions(), database.decisions()
    decided = await asyncio.gather(
        *[both[n % 2].decide(requests(range(n * 5, n * 5 + 5), partition=n), CUTOFF) for n in range(8)]
    )
    assert sum(map(len, decided)) == 20
    assert await database.rows("SELECT tokens FROM days") == [(800,)]


async def test_topics_made_anew_and_the_next_candidate_are_decided_anew(database: Database) -> None:
    decisions = database.decisions()
    assert numbers(await decisions.decide(requests([7]), CUTOFF)) == [7]
    await decisions.finish(requests([7])[0], Outcome.PAIR)
    anew = [Considered(delivery(prediction(99), 7), rollout())]  # Another request at the same offset.
    assert len(await decisions.decide(anew, CUTOFF)) == 1
    candidate = rollout().model_copy(update={"rollout_id": "rollout-2"})
    assert len(await decisions.decide(requests([7], under=candidate), CUTOFF)) == 1


async def test_only_the_last_decisions_of_each_partition_are_kept(database: Database) -> None:
    decisions = database.decisions()
    for partition, offset in ((0, 1), (1, 1), (0, 500), (0, 1_600), (0, 5_000)):
        await decisions.decide(requests([offset], partition), CUTOFF)
    rows = await database.rows("SELECT partition, record_offset FROM decisions ORDER BY partition, record_offset")
    assert rows == [(0, 5_000), (1, 1)]


async def test_what_is_stored_has_neither_texts_nor_people(database: Database) -> None:
    decisions = database.decisions()
    event = prediction(4711, session_hash="session-4711")
    await decisions.decide([Considered(delivery(event, 1), rollout())], CUTOFF)
    tables = ("decisions", "minutes", "days", "outcomes")
    stored = str([await database.rows(f"SELECT {table}::text FROM {table}") for table in tables])
    assert event.request_id in stored
    assert not any(word in stored for word in ("parcel", "user-4711", "session-4711", "refund"))


async def test_what_forgotten_people_asked_is_not_replayed_whether_it_is_new_or_waits(database: Database) -> None:
    decisions, asked_at = database.decisions(), CUTOFF + timedelta(minutes=1)
    assert numbers(await decisions.decide(requests([1, 2]), CUTOFF)) == [1, 2]
    for number, until in ((2, asked_at), (3, asked_at), (4, asked_at - timedelta(seconds=1))):
        await decisions.forget(
            SubjectForgotten(
                task=SPEC.name, task_revision=SPEC.revision, subject_hash=f"user-{number}", occurred_at=until
            )
        )
    decided = await decisions.decide(requests([1, 2, 3, 4]), CUTOFF)
    left_out = {request.delivery.offset: request.left_out for request in decided}
    assert left_out == {1: None, 2: Outcome.FORGOTTEN, 4: None}, "3 is new and decided already; 4 was asked later"
    from_backlog = [replace(request, from_backlog=True) for request in requests([3, 4], partition=1)]
    assert [request.left_out for request in await decisions.decide(from_backlog, CUTOFF)] == [None], "4, not 3"
    shadow = Shadow(decisions)
    await shadow.replays.run(decided)
    assert len(shadow.candidate.asked) == 2
    (summary,) = await decisions.summaries(CUTOFF)
    assert summary.requests == {"forgotten": 3, "pair": 2, "waiting": 1}
    assert await database.rows("SELECT tokens FROM days") == [(160,)], "3 costs nothing; 2 was paid for before"


async def test_the_handlers_go_on_where_a_killed_process_stopped(database: Database) -> None:
    killed = Shadow(database.decisions())
    killed.candidate.away = True
    with pytest.raises(DependencyUnavailable):
        await killed.deliver(0, *map(prediction, range(30)))
    restarted = Shadow(database.decisions())
    pairs = await restarted.deliver(0, *map(prediction, range(30)))
    assert len(pairs) == len(restarted.candidate.asked) == 20
    assert await restarted.deliver(0, *map(prediction, range(30))) == []


class Slow(BothArms):
    """A candidate that is still being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.answers = asyncio.Event(), asyncio.Event()

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        self.is_asked.set()
        await self.answers.wait()
        return await super().candidate(rollout, request)


def slow_and_other(database: Database) -> tuple[Shadow, Shadow, Slow]:
    """Two processes on one database, and the candidate of the first one, whose answers wait."""
    candidate = Slow()
    return Shadow(database.decisions(), engine=candidate), Shadow(database.decisions()), candidate


async def test_one_batch_of_a_task_is_replayed_at_a_time_whichever_process_has_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two answers to a request the first would count: the faster one, and none where one of them times out. And of
    two requests of a subject the one that is answered sooner would bet."""
    monkeypatch.setattr(replays, "CLAIM_SECONDS", 0.2)
    slow, other, candidate = slow_and_other(database)
    first = asyncio.create_task(slow.deliver(0, *map(prediction, range(3))))
    await candidate.is_asked.wait()
    for partition in (0, 1):
        with pytest.raises(Paused):
            await other.deliver(0, *map(prediction, range(3)), partition=partition)
    async with other.handlers._decisions.claimed_task("another", PATIENCE_SECONDS) as is_ours:
        assert is_ours, "other tasks do not wait"
    monkeypatch.setattr(replays, "CLAIM_SECONDS", PATIENCE_SECONDS)
    waiting = asyncio.create_task(other.deliver(0, prediction(7), partition=1))
    await asyncio.sleep(0.3)
    assert not waiting.done() and not other.candidate.asked
    candidate.answers.set()
    assert len(await first) == 3
    assert len(await waiting) == 1, "it has waited for its turn"
    assert await other.deliver(0, *map(prediction, range(3))) == []


async def test_whoever_lost_its_claim_publishes_no_further_pair(database: Database) -> None:
    """Its connection broke, as at a restart of PostgreSQL, and another process replays the task by then."""
    slow, other, candidate = slow_and_other(database)
    first = asyncio.create_task(slow.deliver(0, *map(prediction, range(3))))
    await candidate.is_asked.wait()
    await database.rows(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND"
        f" objid::bigint = hashtext('replays of {SPEC.name} {database.schema}')::bigint & 4294967295"
    )
    assert len(await other.deliver(0, prediction(7), partition=1)) == 1
    candidate.answers.set()
    with pytest.raises(DependencyUnavailable):
        await first
    assert slow.published.events == []
    assert len(await slow.deliver(0, *map(prediction, range(3)))) == 3, "its turn comes again"


async def test_a_backlog_is_advanced_from_where_it_begins_and_no_other_place(database: Database) -> None:
    """A process that had lost its claim set it back, and one whose batch ended passed what had joined before it."""
    decisions = database.decisions()
    await decisions.decide(deferred([3, 9]), CUTOFF)
    (stale,) = await decisions.backlogs()
    left = await decisions.advance(stale, 7)
    assert left is not None and left.next_offset == 7
    assert await decisions.advance(stale, 5) == left
    await decisions.decide(deferred([1]), CUTOFF)
    earlier = await decisions.advance(left, 9)
    assert earlier is not None and earlier.next_offset == 1


def deferred(numbers: Sequence[int], partition: int = 0) -> list[Considered]:
    return [replace(request, is_put_off=True) for request in requests(numbers, partition)]


async def test_what_is_read_while_the_flag_is_off_waits_and_newer_requests_join_it(database: Database) -> None:
    decisions = database.decisions()
    assert await decisions.decide(deferred([3, 4]), CUTOFF) == []
    (elsewhere,) = await decisions.decide([*requests([6]), *requests([6], partition=1)], CUTOFF)
    assert elsewhere.position == (1, 6)
    (backlog,) = await database.decisions().backlogs()
    assert (backlog.partition, backlog.next_offset, backlog.end_offset) == (0, 3, 7)
    assert await database.rows("SELECT tokens FROM days") == [(40,)]
    (summary,) = await decisions.summaries(CUTOFF)
    assert summary.requests == {"waiting": 1, "backlog": 4}
    left = await decisions.advance(backlog, 5)
    assert left is not None and left.next_offset == 5
    assert await decisions.decide(requests([8]), CUTOFF) == []  # It came while the rest was replayed.
    left = await decisions.advance(left, 7)
    assert left is not None and left.end_offset == 9
    assert await decisions.advance(left, 9) is None
    assert await decisions.backlogs() == []
    assert numbers(await decisions.decide(requests([8, 9]), CUTOFF)) == [9]


async def test_a_request_of_a_backlog_is_paid_once_and_its_redelivery_waits_still(database: Database) -> None:
    decisions = database.decisions()
    await decisions.decide(deferred([3]), CUTOFF)
    again = [replace(request, from_backlog=True) for request in requests([3])]
    for _ in range(2):
        assert await decisions.decide(again, CUTOFF) == again
        assert await decisions.decide(requests([3]), CUTOFF) == []
    await decisions.finish(again[0], Outcome.PAIR)
    assert await database.rows("SELECT tokens FROM days") == [(40,)]
    (summary,) = await decisions.summaries(CUTOFF)
    assert summary.requests == {"pair": 1, "backlog": 1}


async def test_what_waited_for_its_replay_when_the_flag_was_turned_off_joins_the_backlog(database: Database) -> None:
    decisions = database.decisions()
    assert len(await decisions.decide(requests([3, 4]), CUTOFF)) == 2
    await decisions.finish(requests([3])[0], Outcome.PAIR)
    assert await decisions.decide(deferred([3, 4]), CUTOFF) == []
    (backlog,) = await decisions.backlogs()
    assert (backlog.next_offset, backlog.end_offset) == (4, 5)
