"""A task's budget: requests a second, tokens a day; decided before the candidate is asked, and by nothing it does."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from schemas.predictions import PredictionLogged, Usage
from schemas.rollouts import RolloutChanged
from schemas.task_settings import RolloutSettings
from services.shadow import replays
from services.shadow.budget import Considered, Pace, Spending
from services.shadow.clients import Replay
from services.shadow.domain import Outcome, Request
from shared.errors import DependencyUnavailable, Paused
from tests.unit.shadow.fakes import CUTOFF, SPEC, BothArms, Shadow, call, delivery, prediction, reply, rollout


def limited(**limits: Any) -> RolloutChanged:
    return rollout().model_copy(update={"spec": SPEC.model_copy(update={"rollout": RolloutSettings(**limits)})})


def considered(event: PredictionLogged, offset: int = 0, **limits: Any) -> Considered:
    return Considered(delivery(event, offset), limited(**limits))


async def test_a_days_tokens_are_not_exceeded_but_by_the_last_request(shadow: Shadow) -> None:
    # Each request has 40 tokens, and the day 20 times as many.
    assert len(await shadow.replay(*[prediction(number) for number in range(30)])) == 20
    assert await shadow.replay(prediction(31)) == []
    assert len(shadow.candidate.asked) == 20
    assert await shadow.count() == {Outcome.PAIR: 20, Outcome.TOKENS: 11}


async def test_both_replays_of_a_redacted_text_count(shadow: Shadow) -> None:
    assert len(await shadow.replay(*[prediction(number, redactions=1) for number in range(30)])) == 10
    assert len(shadow.candidate.asked) == 20


async def test_requests_a_second_are_those_that_production_answered_whenever_they_are_read(shadow: Shadow) -> None:
    """A backlog of an hour is read in seconds, and a slow candidate slows shadow down: neither changes who bets."""
    events = [
        prediction(number, occurred_at=CUTOFF + timedelta(minutes=1 + number % 3, seconds=number % 60))
        for number in range(30)
    ]
    half = limited(shadow_requests_per_second=0.05)  # Three a minute.
    shadow.replays._pace.book = lambda request, now, latest: now  # type: ignore[method-assign]  # Not to wait here.
    pairs = await shadow.replay(*events, under=half)
    assert [pair.prediction_id for pair in pairs] == [f"support-desk.{number}" for number in range(9)]
    assert await shadow.count() == {Outcome.PAIR: 9, Outcome.RATE: 21}


def test_a_requests_own_length_decides_nothing() -> None:
    long = considered(prediction(usage=Usage(prompt_tokens=10_000)), shadow_tokens_per_day=100)
    short = considered(prediction(usage=Usage(prompt_tokens=1)), shadow_tokens_per_day=100)
    for before, expected in ((99, None), (100, Outcome.TOKENS)):
        for request in (long, short):
            assert Spending(CUTOFF.date(), 4, tokens={SPEC.name: before}).decide([request]) == [expected]


def test_no_more_is_taken_than_the_places_can_replay() -> None:
    """A request of 36 seconds each three seconds are twelve at once, and four are replayed at once: an hour later the
    task, and all others of its partitions, would be two thirds of an hour late."""
    spending = Spending(CUTOFF.date(), 4)
    start = CUTOFF.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    taken = [
        3 * number
        for number in range(2_400)
        if spending.decide([considered(prediction(
            number, occurred_at=start + timedelta(seconds=3 * number), latency_ms=36_000.0
        ))]) == [None]
    ]  # fmt: skip
    assert len(taken) == 2 * 400  # Of each hour what takes four hours.
    assert max(taken) > 3_600


@pytest.mark.parametrize("given", [reply("x" * 100_000), reply("a"), reply(None), None])
async def test_what_the_candidate_answers_changes_nothing_of_the_budget(shadow: Shadow, given: Replay | None) -> None:
    shadow.candidate.given = given
    await shadow.replay(*[prediction(number) for number in range(30)])
    assert len(shadow.candidate.asked) == 20
    assert await shadow.tokens() == {SPEC.name: 800}


def test_tokens_that_no_server_counted_are_estimated_by_production_side_alone() -> None:
    request = considered(prediction(usage=Usage(), call=call("word " * 400)))
    assert 500 < request.tokens < 800


async def test_a_redelivered_request_is_neither_decided_nor_asked_nor_published_again(shadow: Shadow) -> None:
    events = [prediction(number) for number in range(30)]
    assert len(await shadow.deliver(0, *events)) == 20
    assert await shadow.deliver(0, *events) == []
    assert len(shadow.candidate.asked) == 20


async def test_of_a_batch_that_failed_only_what_is_left_is_asked_again(shadow: Shadow) -> None:
    class AwayAfterThree(BothArms):
        async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
            self.away = len(self.asked) == 3
            while self.away and (await shadow.count())[Outcome.PAIR] < 3:
                await asyncio.sleep(0.001)
            return await super().candidate(rollout, request)

    shadow.replays._engine = arms = AwayAfterThree()
    shadow.replays._places[SPEC.name] = asyncio.Semaphore(1)
    with pytest.raises(DependencyUnavailable):
        await shadow.deliver(0, *[prediction(number) for number in range(5)])
    assert len(shadow.published.events) == 3
    assert len(await shadow.deliver(0, *[prediction(number) for number in range(5)])) == 2
    assert len(arms.asked) == 6
    assert await shadow.tokens() == {SPEC.name: 200}


async def test_what_is_no_longer_eligible_at_its_redelivery_is_no_pair(shadow: Shadow) -> None:
    shadow.candidate.away = True
    with pytest.raises(DependencyUnavailable):
        await shadow.deliver(0, prediction())
    shadow.candidate.away = False
    assert await shadow.deliver(0, prediction(), under=rollout(primary="another")) == []
    assert await shadow.count() == {Outcome.OTHER_ARM: 1}


def test_replays_are_paced_by_a_bucket_that_holds_one_second() -> None:
    pace, request = Pace(), considered(prediction(), shadow_requests_per_second=2.0)
    sent = [pace.book(request, 100.0, 102.0) for _ in range(9)]
    assert sent == [100.0, 100.0, 100.0, 100.5, 101.0, 101.5, 102.0, None, None]
    assert pace.book(request, 110.0, 110.0) == 110.0
    assert pace.book(considered(prediction(redactions=1), shadow_requests_per_second=0.5), 120.0, 120.0) == 120.0


async def test_a_batch_whose_turn_does_not_come_in_time_is_redelivered_and_goes_on(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka takes a partition away from a consumer whose batch takes too long."""
    monkeypatch.setattr(replays, "MAX_BATCH_SECONDS", 0.2)
    events = [prediction(number) for number in range(8)]
    with pytest.raises(Paused, match="replays wait for their turn"):
        await shadow.deliver(0, *events, under=limited(shadow_requests_per_second=1.0))
    assert 0 < len(shadow.published.events) < 8
    shadow.replays._pace = Pace()
    await shadow.deliver(0, *events, under=limited(shadow_requests_per_second=10_000.0))
    assert [pair.prediction_id for pair in shadow.published.events] == [e.answers[0].prediction_id for e in events]
    assert len(shadow.candidate.asked) == 8


async def test_replays_are_bounded(shadow: Shadow) -> None:
    class Counting(BothArms):
        running = most = 0

        async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.005)
            self.running -= 1
            return await super().candidate(rollout, request)

    shadow.replays._engine = arms = Counting()
    await asyncio.gather(*[shadow.replay(*[prediction(n) for n in range(r, r + 6)]) for r in (0, 6)])
    assert arms.most == 4


@pytest.mark.parametrize("per_second", [0.05, 0.25, 0.01, 20.0])
def test_what_a_minute_admits_is_sent_within_a_minute(per_second: float) -> None:
    """At one each twenty seconds four replays a minute were taken and three were sent: the lag grew without end."""
    pace, spending, last = Pace(), Spending(CUTOFF.date(), 4), 0.0
    limits = {"shadow_requests_per_second": per_second, "shadow_tokens_per_day": 10**9}
    for second in range(1_800):
        event = prediction(second, occurred_at=CUTOFF + timedelta(minutes=1, seconds=second), redactions=1)
        asked = considered(event, **limits)
        if spending.decide([asked]) == [None]:
            at = pace.book(asked, float(second), 1e9)
            assert at is not None
            last = max(last, at - second)
    assert last <= 60.0
