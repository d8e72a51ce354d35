"""Shadow replays only eligible predictions, within its sample and its budget."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import nullcontext
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from faststream.kafka import KafkaBroker, TestKafkaBroker

from schemas.base import Event, Variant
from schemas.conversation import Answer, Api, FinishReason, Media, Message, Part, Role, ToolCall
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from schemas.task_settings import RedactionSettings, RolloutSettings
from schemas.tasks import TaskKind
from services.shadow import handlers
from services.shadow.budget import Considered
from services.shadow.clients import CandidateMissing, Replay
from services.shadow.domain import Outcome, Request, ineligible, pair_of, request_of
from services.shadow.handlers import Handlers, batch_seconds
from services.shadow.replays import Replays
from services.shadow.settings import ShadowSettings
from services.shadow.storage import ReplayBacklog
from shared.answers import answer_form
from shared.errors import ConfigurationError, DependencyUnavailable, Paused
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.model.near_copies import AskedQuestions
from tests.database import Database
from tests.unit.shadow.fakes import (
    CUTOFF,
    SPEC,
    BothArms,
    OneTrainingIndex,
    Sampling,
    Shadow,
    answer,
    call,
    delivery,
    logged,
    prediction,
    reply,
    rollout,
    task_changed,
    texts,
    with_tools,
)
from tests.waiting import PATIENCE_SECONDS


async def test_an_eligible_prediction_becomes_a_pair(shadow: Shadow) -> None:
    (pair,) = await shadow.replay(prediction())
    assert isinstance(pair, ShadowCompared)
    assert texts(pair) == ("refund", "delivery")
    assert not pair.agree
    assert pair.call == prediction().call
    assert (pair.user_hash, pair.cycle_id, pair.logged_at) == ("user-1", "cycle-1", CUTOFF + timedelta(minutes=1))


@pytest.mark.parametrize(
    ("changes", "subject", "identified"),
    [
        ({"subject": "user-1"}, "user-1", True),
        ({"user_hash": None, "session_hash": "s1", "subject": "s1"}, "s1", True),
        ({"user_hash": None, "subject": "opening-1"}, "opening-1", False),
        ({"user_hash": "user-2", "subject": None}, "user-2", True),
        ({"user_hash": None, "session_hash": "s2", "subject": None}, "s2", True),
        ({"user_hash": None, "subject": None}, "unknown", False),
        ({"user_hash": None, "subject": None, "call": call("another question")}, "unknown", False),
    ],
)
def test_a_pair_has_the_subject_that_the_gateway_knew_before_redaction(
    changes: dict[str, Any], subject: str, identified: bool
) -> None:
    """One text that was sent 19 times without a user promoted a candidate: each request was its own subject."""
    pair = pair_of(prediction(**changes), rollout(), Answer(text="a"), Answer(text="b"), 1.0, CUTOFF)
    assert (pair.subject, pair.identified) == (subject, identified)


@pytest.mark.parametrize(
    ("changes", "primary", "reason"),
    [
        ({"occurred_at": CUTOFF}, None, Outcome.BEFORE_CUTOFF),
        ({"task_revision": "another"}, None, Outcome.OTHER_REVISION),
        ({"variant": Variant.CANARY, "adapter": "a1"}, None, Outcome.OTHER_ARM),
        ({"variant": Variant.ROLLBACK}, None, Outcome.OTHER_ARM),
        ({"variant": Variant.EXTERNAL}, None, Outcome.OTHER_ARM),
        ({"variant": Variant.PRIMARY, "adapter": "old"}, None, Outcome.OTHER_ARM),
        ({"variant": Variant.BASE}, "a0", Outcome.OTHER_ARM),
    ],
)
async def test_only_the_primarys_answer_to_a_new_input_becomes_a_pair(
    shadow: Shadow, changes: dict[str, Any], primary: str | None, reason: Outcome
) -> None:
    assert ineligible(prediction(**changes), rollout(primary=primary)) is reason
    assert await shadow.replay(prediction(**changes), under=rollout(primary=primary)) == []
    assert await shadow.count() == {reason: 1}


async def test_the_primary_adapters_answers_are_compared_when_it_serves(shadow: Shadow) -> None:
    served = prediction(variant=Variant.PRIMARY, adapter="a0")
    assert len(await shadow.replay(served, under=rollout(Stage.CANARY, primary="a0"))) == 1


@pytest.mark.parametrize("stage", [Stage.PROMOTED, Stage.REJECTED, Stage.ROLLED_BACK])
async def test_nothing_is_replayed_without_an_active_candidate(shadow: Shadow, stage: Stage) -> None:
    assert await shadow.replay(prediction(), under=rollout(stage)) == []
    assert shadow.candidate.asked == []


async def test_a_replay_that_fails_on_production_too_is_no_pair(shadow: Shadow) -> None:
    shadow.candidate.given = None
    assert await shadow.replay(prediction(1)) == []


async def test_a_near_duplicate_of_a_training_row_is_not_a_pair(database: Database) -> None:
    shadow = await Shadow.on(database, "Where is parcel number 1, that I ordered?!")
    assert await shadow.replay(prediction(1)) == []
    other = prediction(2, call=call("please send my money back"))
    assert len(await shadow.replay(other)) == 1


async def test_what_is_read_while_the_flag_is_off_waits_and_what_is_not_in_the_sample_does_not(shadow: Shadow) -> None:
    shadow.sampling.on = False
    assert await shadow.replay(prediction(1)) == []
    shadow.sampling.on = True
    # In the partition of what waits, it would wait, too.
    assert len(await shadow.deliver(0, prediction(2), partition=1)) == 1
    unsampled = prediction(3, answers=(answer(name="support-desk.unsampled"),))
    assert await shadow.deliver(1, unsampled, partition=1) == []
    assert await shadow.count() == {Outcome.DEFERRED: 1, Outcome.PAIR: 1, Outcome.NOT_SAMPLED: 1}


async def test_a_flag_that_is_turned_off_while_its_sample_is_asked_leaves_nothing_out(shadow: Shadow) -> None:
    class TurnedOff(Sampling):
        def sampled(self, task: str, prediction_id: str) -> bool:
            self.on = False
            return False

    shadow.handlers._sampling = TurnedOff()
    assert await shadow.replay(prediction()) == []
    assert await shadow.count() == {Outcome.DEFERRED: 1}


class MissingIndex(OneTrainingIndex):
    """The training rows of a task cannot be read while `is_there` is not set; a task's of another rollout can."""

    is_there = False

    async def for_rollout(self, rollout: RolloutChanged) -> AskedQuestions:
        if rollout.task == SPEC.name and not self.is_there:
            raise DependencyUnavailable("the folder is not in the artifact store")
        return await super().for_rollout(rollout)


async def test_training_rows_that_cannot_be_read_hold_up_their_own_task_alone(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "_UNREADABLE_SECONDS", 0.0)
    index = MissingIndex()
    shadow.handlers._read_training_index = index.for_rollout
    spec = SPEC.model_copy(update={"name": "another"})
    another = {"task": "another", "rollout_id": "rollout-2", "spec": spec, "dataset_uri": "another"}
    await shadow.handlers.rollouts.put("another", rollout().model_copy(update=another))
    (pair,) = await shadow.replay(prediction(1), prediction(2, task="another"))
    assert pair.task == "another"
    left = ReplayBacklog("rollout-1", SPEC.name, 0, 0, 1)
    assert not await shadow.handlers.on_backlog(left, [delivery(prediction(1), 0)])
    index.is_there = True
    assert await shadow.handlers.on_backlog(left, [delivery(prediction(1), 0)])
    assert [pair.task for pair in shadow.published.events] == ["another", SPEC.name]


class CandidateIsGone(BothArms):
    """A replica has restarted without the candidate, whose folder was deleted."""

    is_there = False

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        if rollout.task == SPEC.name and not self.is_there:
            raise CandidateMissing("no artifact there", rollout.candidate_uri)
        return self.given


async def test_a_candidate_that_is_gone_holds_up_its_own_task_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every partition with a request of it stood until that was a day old."""
    engine = CandidateIsGone()
    shadow = await Shadow.on(database, engine=engine)
    spec = SPEC.model_copy(update={"name": "another"})
    another = {"task": "another", "rollout_id": "rollout-2", "spec": spec}
    await shadow.handlers.rollouts.put("another", rollout().model_copy(update=another))
    batch = (prediction(1), prediction(2, task="another"))
    with pytest.raises(CandidateMissing):
        await shadow.deliver(0, *batch)
    await shadow.deliver(0, *batch)
    assert await shadow.count() == {Outcome.DEFERRED: 1, Outcome.PAIR: 1}
    left = ReplayBacklog("rollout-1", SPEC.name, 0, 0, 1)
    assert not await shadow.handlers.is_ready(left)
    monkeypatch.setattr(shadow.handlers, "_unreadable_until", {})
    assert not await shadow.handlers.on_backlog(left, [delivery(prediction(1), 0)])  # Nor are others' backlogs.
    engine.is_there = True
    monkeypatch.setattr(shadow.handlers, "_unreadable_until", {})
    assert await shadow.handlers.on_backlog(left, [delivery(prediction(1), 0)])
    assert [pair.task for pair in shadow.published.events] == ["another", SPEC.name]


async def test_a_backlog_is_replayed_once_the_flag_is_on_and_while_it_stays_on(shadow: Shadow) -> None:
    left = ReplayBacklog("rollout-1", SPEC.name, 0, 1, 3)
    shadow.sampling.on = False
    await shadow.deliver(1, prediction(1), prediction(2))
    batch = [delivery(prediction(1), 1), delivery(prediction(2), 2)]
    assert not await shadow.handlers.on_backlog(left, batch)
    shadow.sampling.on = True
    assert await shadow.handlers.on_backlog(left, batch)
    assert [pair.prediction_id for pair in shadow.published.events] == ["support-desk.1", "support-desk.2"]


@pytest.mark.parametrize(
    ("rollout_id", "stage", "is_over", "is_ready"),
    [
        ("rollout-1", Stage.SHADOW, False, True),
        ("rollout-1", Stage.CANARY, False, True),
        ("rollout-1", Stage.REJECTED, True, False),
        ("rollout-2", Stage.SHADOW, True, False),
        ("rollout-2", Stage.QUEUED, False, False),
        ("rollout-2", Stage.REJECTED, False, False),
    ],
)
async def test_a_backlog_is_over_when_its_rollout_ended_and_not_when_another_one_is_queued(
    shadow: Shadow, rollout_id: str, stage: Stage, is_over: bool, is_ready: bool
) -> None:
    """A newer candidate is announced just before the one that is compared is announced once more."""
    backlog = ReplayBacklog("rollout-1", SPEC.name, 0, 1, 3)
    await shadow.deliver(0, under=rollout(stage).model_copy(update={"rollout_id": rollout_id}))
    assert await shadow.handlers.is_over(backlog) is is_over
    assert await shadow.handlers.is_ready(backlog) is is_ready
    assert await shadow.handlers.on_backlog(backlog, [delivery(prediction(1), 1)]) is is_ready


async def test_a_request_that_is_read_before_the_rollouts_waits_for_them(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start read the predictions of its time away before it knew of any candidate, and passed them by."""
    monkeypatch.setattr(handlers, "_READ_SECONDS", 0.01)
    with pytest.raises(DependencyUnavailable, match="not read to its end yet"):
        await shadow.handlers.on_predictions([delivery(prediction(), 0)])
    assert len(await shadow.deliver(0, prediction())) == 1


async def test_a_pair_does_not_say_by_a_surrogate_which_answer_is_productions(shadow: Shadow) -> None:
    asked = call('Paula\'s "parcel" is late', surrogates=("Nadia", "Paula", 'Paula\'s "parcel"'))
    (pair,) = await shadow.replay(prediction(call=asked))
    assert pair.call.surrogates == ("Paula", 'Paula\'s "parcel"')


async def test_the_pair_of_a_prediction_is_the_same_whenever_it_is_made(shadow: Shadow) -> None:
    (first,) = await shadow.replay(prediction())
    (second,) = await shadow.replay(prediction())
    assert (first.event_id, first.pair_id) == (second.event_id, second.pair_id)
    assert first.pair_id != pair_of(prediction(2), rollout(), answer(), answer(), 1.0, CUTOFF).pair_id


def test_a_replay_that_is_answered_differently_the_second_time_is_the_same_pair() -> None:
    """It was delivered again: of two pairs both would bet."""
    replays = [
        (answer("refund"), 1.0, CUTOFF),
        (answer("delivery"), 2.0, CUTOFF + timedelta(minutes=1)),
        (None, 3.0, CUTOFF),
    ]
    pairs = [pair_of(prediction(), rollout(), answer(), *replay) for replay in replays]
    assert len({(pair.event_id, pair.pair_id) for pair in pairs}) == 1


async def test_both_arms_are_asked_again_when_the_stored_text_was_redacted(shadow: Shadow) -> None:
    (pair,) = await shadow.replay(prediction(redactions=1))
    assert (texts(pair), pair.agree) == (("login", "delivery"), False)
    shadow.candidate.given_by_production = reply("delivery")
    (pair,) = await shadow.replay(prediction(2, redactions=3))
    assert (texts(pair), pair.agree) == (("delivery", "delivery"), True)
    assert len(shadow.candidate.asked) == 4


async def test_equal_arms_win_as_often_as_they_lose_though_only_right_answers_are_redacted(database: Database) -> None:
    """Each arm answers right in half of its draws, and right answers have a name in them, which is replaced."""
    under = rollout().model_copy(update={"spec": SPEC.model_copy(update={"redaction": RedactionSettings()})})
    won = 0
    for served, again, candidate in product(("right", "wrong"), repeat=3):
        shadow = await Shadow.on(database)
        shadow.candidate.given, shadow.candidate.given_by_production = reply(candidate), reply(again)
        event = prediction(
            call=call(constrained=False), answers=(answer(served),), redactions=1 if served == "right" else 0
        )
        (pair,) = await shadow.replay(event, under=under)
        production, challenger = texts(pair)
        won += (challenger == "right") - (production == "right")
    assert won == 0


@pytest.mark.parametrize("turned_off_again", [False, True])
async def test_redaction_that_begins_while_a_candidate_is_compared_chooses_no_answers(
    database: Database, turned_off_again: bool
) -> None:
    """As above: the rollout's task did not redact when its cycle began, and does when its answers are logged."""
    won, asked = 0, set()
    for served, again, candidate in product(("right", "wrong"), repeat=3):
        shadow = await Shadow.on(database)
        shadow.candidate.given, shadow.candidate.given_by_production = reply(candidate), reply(again)
        event = prediction(
            call=call(constrained=False), answers=(answer(served),), redactions=1 if served == "right" else 0
        )
        await shadow.handlers.on_task(task_changed(event.occurred_at - timedelta(minutes=1), redacts=True))
        if turned_off_again:
            await shadow.handlers.on_task(task_changed(event.occurred_at + timedelta(minutes=1), redacts=False))
        (pair,) = await shadow.replay(event)
        production, challenger = texts(pair)
        won += (challenger == "right") - (production == "right")
        asked.add(len(shadow.candidate.asked))
    assert (won, asked) == (0, {2})


async def test_what_is_logged_once_redaction_has_ended_is_productions_own_answer(shadow: Shadow) -> None:
    event = prediction(call=call(constrained=False))
    for minutes, redacts in ((9, True), (5, False), (4, False)):
        await shadow.handlers.on_task(task_changed(event.occurred_at - timedelta(minutes=minutes), redacts=redacts))
    await shadow.replay(event)
    assert len(shadow.candidate.asked) == 1


async def test_a_request_that_is_read_before_the_tasks_waits_for_them(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "_READ_SECONDS", 0.01)
    await shadow.handlers.rollouts.put(SPEC.name, rollout())
    await shadow.handlers.rollouts.read_to({})
    with pytest.raises(DependencyUnavailable, match="is not read to its end yet"):
        await shadow.handlers.on_predictions([delivery(prediction(), 0)])
    assert len(await shadow.deliver(0, prediction())) == 1


async def test_an_answer_that_is_a_label_is_never_redacted_so_production_is_not_asked_again(shadow: Shadow) -> None:
    spec = SPEC.model_copy(update={"redaction": RedactionSettings()})
    await shadow.replay(prediction(), under=rollout().model_copy(update={"spec": spec}))
    assert len(shadow.candidate.asked) == 1


@pytest.mark.parametrize("given", [reply(None), reply("log", FinishReason.LENGTH)])
async def test_without_productions_whole_answer_to_the_stored_text_there_is_no_pair(
    shadow: Shadow, given: Replay
) -> None:
    shadow.candidate.given_by_production = given
    assert await shadow.replay(prediction(redactions=1)) == []
    assert len(shadow.candidate.asked) == 1


async def test_a_candidate_that_errs_disagrees(shadow: Shadow) -> None:
    shadow.candidate.given = reply(None)
    (pair,) = await shadow.replay(prediction())
    assert (pair.candidate_answer, pair.agree) == (None, False)


class FirstIsSlow(BothArms):
    """Answers the first request when it has answered so many others; `fails`: the engine is away then."""

    def __init__(self, others: int = 1, *, fails: bool = False) -> None:
        super().__init__()
        self._others, self._fails = others, fails
        self._answered = asyncio.Event()

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        self.asked.append(request)
        if "number 1 " not in request.body["messages"][-1]["content"]:
            self._others -= 1
        elif self._others:
            await self._answered.wait()
            if self._fails:
                raise DependencyUnavailable("the engine is away")
        if not self._others:
            self._answered.set()
        return self.given


@pytest.mark.parametrize("subject", ["ann", "ben"])
async def test_the_order_of_the_pairs_does_not_depend_on_how_long_the_candidate_takes(
    database: Database, subject: str
) -> None:
    shadow = await Shadow.on(database, engine=FirstIsSlow())
    pairs = await shadow.replay(prediction(1, subject="ann"), prediction(2, subject=subject))
    assert [pair.prediction_id for pair in pairs] == ["support-desk.1", "support-desk.2"]


async def test_a_pair_does_not_overtake_an_earlier_request_that_is_to_be_replayed_again(database: Database) -> None:
    shadow = await Shadow.on(database, engine=FirstIsSlow(fails=True))
    with pytest.raises(DependencyUnavailable):
        await shadow.replay(prediction(1), prediction(2))
    assert shadow.published.events == []
    assert await shadow.count() == {None: 2}


async def test_a_slow_answer_keeps_no_other_request_from_being_replayed(database: Database) -> None:
    """All others have their turn in the places beside it, though their pairs wait for its own."""
    shadow = await Shadow.on(database, engine=FirstIsSlow(others=9))
    assert len(await shadow.replay(*[prediction(number) for number in range(1, 11)])) == 10


class OtherTaskHangs(BothArms):
    """Answers what is asked of task `other` once this test's task has published so many pairs; `fails`: never."""

    def __init__(self, published: list[Event], pairs: int, *, fails: bool) -> None:
        super().__init__()
        self._published, self._pairs, self._fails = published, pairs, fails

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        if rollout.task == "other":
            if self._fails:
                raise DependencyUnavailable("its adapter cannot be fetched")
            while len(self._published) < self._pairs:
                await asyncio.sleep(0)
        return self.given


@pytest.mark.parametrize("fails", [False, True])
async def test_a_task_whose_replays_are_slow_or_fail_holds_up_no_other_task(shadow: Shadow, fails: bool) -> None:
    """It comes first, with more requests than it has places."""
    shadow.replays._engine = OtherTaskHangs(shadow.published.events, 9, fails=fails)
    ours = [Considered(delivery(prediction(n), n), rollout()) for n in range(9)]
    under = rollout().model_copy(update={"task": "other", "rollout_id": "rollout-other"})
    other = [Considered(delivery(prediction(n, task="other"), n), under) for n in range(9, 18)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        if fails:
            with pytest.raises(DependencyUnavailable):
                await shadow.replays.run([*other, *ours])
        else:
            await shadow.replays.run([*other, *ours])
    pairs = Counter(event.task for event in shadow.published.events)
    assert pairs == ({SPEC.name: 9} if fails else {SPEC.name: 9, "other": 9})


class OtherTaskWaits(BothArms):
    """Answers what is asked of task `other` once another process could claim this test's task."""

    def __init__(self, shadow: Shadow) -> None:
        super().__init__()
        self._shadow = shadow

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        if rollout.task == "other":
            while not self._shadow.published.events or not await self._is_free():
                await asyncio.sleep(0.01)
        return self.given

    async def _is_free(self) -> bool:
        async with self._shadow.decisions.claimed_task(SPEC.name, 0.01) as is_ours:
            return is_ours


def of_two_tasks() -> list[Considered]:
    ours = [Considered(delivery(prediction(n), n), rollout()) for n in range(9)]
    under = rollout().model_copy(update={"task": "other", "rollout_id": "rollout-other"})
    return [Considered(delivery(prediction(9, task="other"), 9), under), *ours]


async def test_a_task_is_claimed_for_no_longer_than_its_own_replays_take(shadow: Shadow) -> None:
    """Other processes, and its backlog, waited for the slowest task of the batch."""
    shadow.replays._engine = OtherTaskWaits(shadow)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await shadow.replays.run(of_two_tasks())
    assert Counter(event.task for event in shadow.published.events) == {SPEC.name: 9, "other": 1}


async def test_a_task_that_another_process_has_claimed_leaves_the_others_their_turn(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed_task = shadow.decisions.claimed_task
    elsewhere = nullcontext(False)
    monkeypatch.setattr(
        shadow.decisions, "claimed_task", lambda task, s: elsewhere if task == "other" else claimed_task(task, s)
    )
    with pytest.raises(Paused, match="1 replays wait for their turn"):
        await shadow.replays.run(of_two_tasks())
    assert Counter(event.task for event in shadow.published.events) == {SPEC.name: 9}


async def test_a_batch_that_failed_late_is_not_tried_again_at_once(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an engine that hangs, six attempts took longer than Kafka lets a batch take."""
    shadow.candidate.away = True
    with pytest.raises(DependencyUnavailable) as soon:
        await shadow.deliver(0, prediction(1))
    assert not isinstance(soon.value, Paused)
    monkeypatch.setattr("services.shadow.handlers._SOON_SECONDS", 0.0)
    with pytest.raises(Paused, match="the engine is away"):
        await shadow.deliver(0, prediction(1))


def test_a_timeout_by_which_a_batch_could_take_over_an_hour_is_refused_with_the_way_out() -> None:
    one, two = "http://a", "http://a,http://b"
    assert batch_seconds(ShadowSettings(vllm=two)) == batch_seconds(ShadowSettings(vllm=one)) + 80
    assert batch_seconds(ShadowSettings(vllm=one, shadow_timeout_seconds=300)) < 3_600
    with pytest.raises(ConfigurationError, match="RATCHET_SHADOW_TIMEOUT_SECONDS=450 is too long") as refused:
        batch_seconds(ShadowSettings(vllm=two, shadow_timeout_seconds=450))
    assert refused.value.way_out.startswith("Set it lower")


async def test_an_answer_that_took_production_minutes_is_compared_where_the_timeout_allows_it(shadow: Shadow) -> None:
    assert await shadow.replay(prediction(1, latency_ms=120_000)) == []
    settings = ShadowSettings(shadow_timeout_seconds=180)
    shadow.handlers._settings = settings
    assert len(await shadow.replay(prediction(2, latency_ms=120_000))) == 1


async def test_a_task_that_fails_while_others_wait_for_their_turn_is_tried_with_them(
    shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is tried again at once, six times: with what waits a minute each time that is too long for Kafka."""
    monkeypatch.setattr("services.shadow.replays.MAX_BATCH_SECONDS", 0.01)
    shadow.replays._engine = OtherTaskHangs(shadow.published.events, 9, fails=True)
    slow = rollout().spec.model_copy(update={"rollout": RolloutSettings(shadow_requests_per_second=0.1)})
    ours = [Considered(delivery(prediction(n), n), rollout().model_copy(update={"spec": slow})) for n in range(3)]
    under = rollout().model_copy(update={"task": "other", "rollout_id": "rollout-other"})
    other = [Considered(delivery(prediction(9, task="other"), 9), under)]
    with pytest.raises(Paused, match="wait for their turn"):
        await shadow.replays.run([*other, *ours])
    assert len(shadow.published.events) == 1
    assert shadow.replays._all_places._value == 16, "all places are free again"


class Counting(BothArms):
    """Counts how many are asked at the same time, and answers none before it is asked so many."""

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self._at_once, self._now, self.most = at_once, 0, 0

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        self._now += 1
        self.most = max(self.most, self._now)
        while self.most < self._at_once:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        self._now -= 1
        return self.given


def of_tasks(count: int) -> list[Considered]:
    """Four requests of each task."""
    considered = []
    for number in range(4 * count):
        name = f"task-{number // 4}"
        under = rollout().model_copy(update={"task": name, "rollout_id": f"rollout-{name}"})
        considered.append(Considered(delivery(prediction(number, task=name), number), under))
    return considered


async def test_all_tasks_together_have_four_times_the_places_of_one(database: Database) -> None:
    shadow = await Shadow.on(database, engine=(engine := Counting(at_once=16)))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await shadow.replays.run(of_tasks(8))
    assert (engine.most, len(shadow.published.events)) == (16, 32)


async def test_what_waits_for_a_place_beyond_the_end_of_its_batch_waits_for_the_next_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TakesTooLong(Counting):
        async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
            replay = await super().candidate(rollout, request)
            monkeypatch.setattr("services.shadow.replays.BURST_SECONDS", -PATIENCE_SECONDS)  # The batch's time is over.
            return replay

    shadow = await Shadow.on(database, engine=TakesTooLong(at_once=16))
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(Paused, match="16 replays wait"):
            await shadow.replays.run(of_tasks(8))
    assert len(shadow.published.events) == 16


async def test_an_unavailable_engine_means_redelivery_and_not_a_loss(shadow: Shadow) -> None:
    shadow.candidate.away = True
    with pytest.raises(DependencyUnavailable):
        await shadow.replay(prediction(1), prediction(2))
    assert shadow.published.events == []


@pytest.mark.parametrize(
    "cut",
    [
        {"call": call(truncated=True)},
        {"answers": (answer(truncated=True),)},
        {"answers": (answer(finish_reason=FinishReason.LENGTH),)},
        {"answers": (answer("", finish_reason=FinishReason.CLIENT_LEFT),)},
        {"answers": (answer(finish_reason=FinishReason.UPSTREAM_CUT), answer(name="support-desk.2"))},
        {"answers": (answer(refusal="I cannot."),)},
        {"latency_ms": 20_001.0},
    ],
)
async def test_what_was_cut_refused_or_too_slow_in_production_is_not_a_pair(
    shadow: Shadow, cut: dict[str, Any]
) -> None:
    assert await shadow.replay(prediction(**cut)) == []
    assert shadow.candidate.asked == []


@pytest.mark.parametrize("key", [None, "media/kept"])
async def test_a_conversation_with_a_picture_is_not_a_pair(shadow: Shadow, key: str | None) -> None:
    picture = Part(type="image_url", media=Media(kind="image", hash="5d3f", key=key))
    shown = Message(role=Role.USER, content=(Part(type="text", text="what is this?"), picture))
    assert await shadow.replay(prediction(call=call(messages=(shown,)))) == []
    assert shadow.candidate.asked == []


async def test_a_long_conversation_that_the_event_has_cut_is_not_a_pair(database: Database) -> None:
    event = logged("truncated", answers=(answer(),))
    assert await (await Shadow.on(database)).replay(event) == []
    assert len(await (await Shadow.on(database)).replay(event.model_copy(update={"call": call()}))) == 1


async def test_what_the_candidate_answers_is_never_a_reason_to_leave_the_pair_out(shadow: Shadow) -> None:
    shadow.candidate.given = reply("", FinishReason.LENGTH)
    (pair,) = await shadow.replay(prediction())
    assert (texts(pair), pair.agree) == (("refund", ""), False)


async def test_a_conversation_with_tools_is_replayed_whole_and_compared_by_its_tool_calls(shadow: Shadow) -> None:
    event = with_tools()
    calls = (ToolCall(name="find_order", arguments='{"number": "4713"}', id="another"),)
    same = Answer(tool_calls=calls, reasoning="Other thoughts.", finish_reason=FinishReason.TOOL_CALLS)
    shadow.candidate.given = Replay(same, 5.0)
    (pair,) = await shadow.replay(event)
    assert pair.agree
    assert (pair.call, pair.prediction_id) == (event.call, event.answers[0].prediction_id)
    assert (pair.production_answer.tool_calls, pair.production_answer.reasoning) == (
        event.answers[0].tool_calls, "The label says 4713.",
    )  # fmt: skip
    (request,) = shadow.candidate.asked
    assert request.path == "/v1/chat/completions"
    assert (request.body["tools"], request.body["tool_choice"]) == (list(event.call.tools), "auto")
    assert [message["role"] for message in request.body["messages"]] == [m.role for m in event.call.messages]
    other = same.model_copy(update={"tool_calls": (calls[0].model_copy(update={"arguments": '{"number": "4711"}'}),)})
    shadow.candidate.given = Replay(other, 5.0)
    assert not (await shadow.replay(event))[0].agree


async def test_both_arms_have_the_logged_sampling_parameters_but_a_seed_of_their_own(shadow: Shadow) -> None:
    parameters = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 512, "seed": 7, "n": 2}
    await shadow.replay(with_tools(parameters=parameters).model_copy(update={"redactions": 1}))
    assert len(shadow.candidate.asked) == 2
    for request in shadow.candidate.asked:
        assert not {"seed", "n"} & set(request.body)
        assert {name: request.body[name] for name in ("temperature", "top_p", "max_tokens")} == {
            "temperature": 0.7, "top_p": 0.95, "max_tokens": 512,
        }  # fmt: skip


async def test_both_arms_search_as_many_beams_as_production_did(shadow: Shadow) -> None:
    await shadow.replay(prediction(call=call(parameters={"use_beam_search": True, "n": 4, "seed": 7})))
    (request,) = shadow.candidate.asked
    assert (request.body["n"], "seed" in request.body) == (4, False)


async def test_a_request_with_several_answers_is_one_pair_of_the_first(shadow: Shadow) -> None:
    several = (answer("refund"), answer("delivery", "support-desk.2"), answer("login", "support-desk.3"))
    (pair,) = await shadow.replay(prediction(answers=several))
    assert (pair.prediction_id, texts(pair)) == ("support-desk.1", ("refund", "delivery"))


@pytest.mark.parametrize(
    ("api", "path", "field", "form"),
    [
        (Api.CHAT, "/v1/chat/completions", "messages", "response_format"),
        (Api.MESSAGES, "/v1/chat/completions", "messages", "response_format"),
        (Api.EXTERNAL, "/v1/chat/completions", "messages", "response_format"),
        (Api.RESPONSES, "/v1/responses", "input", "text"),
        (Api.COMPLETIONS, "/v1/completions", "prompt", "response_format"),
    ],
)
def test_a_call_is_replayed_by_the_api_that_it_came_by(api: Api, path: str, field: str, form: str) -> None:
    messages = (Message(role=Role.USER, content="where is it?"),)
    wanted = {"type": "json_object"}
    request = request_of(prediction(call=call(api=api, messages=messages, response_format=wanted)), rollout())
    assert request.path == path
    assert field in request.body
    assert request.body[form] == wanted
    assert request.body["structured_outputs"] == {"choice": ["delivery", "refund"]}


async def test_a_pair_too_long_for_a_question_is_cut_and_says_so_after_it_was_compared(shadow: Shadow) -> None:
    long = "word " * 200_000
    shadow.candidate.given = reply(long + "end")
    event = prediction(call=call(long, constrained=False), answers=(answer(long + "END"),))
    (pair,) = await shadow.replay(event)
    assert pair.agree
    assert pair.call.truncated
    assert pair.production_answer.truncated
    assert pair.candidate_answer is not None
    assert pair.candidate_answer.truncated
    assert len(pair.model_dump_json()) < 900_000
    (request,) = shadow.candidate.asked
    assert request.body["messages"][1]["content"] == long


def test_answers_that_differ_in_case_and_space_agree() -> None:
    assert answer_form(SPEC).same(" Refund\n", "refund")
    assert not answer_form(SPEC).same("refund", "refunds")


@pytest.mark.parametrize(("kind", "agree"), [("multi_label", True), ("classification", False)])
def test_arms_that_give_the_same_labels_in_another_order_agree(kind: str, agree: bool) -> None:
    compared = rollout().model_copy(update={"spec": SPEC.model_copy(update={"kind": TaskKind(kind)})})
    one, other = Answer(text='["refund", "delivery"]'), Answer(text='["delivery", "refund"]')
    assert pair_of(prediction(), compared, one, other, 1.0, CUTOFF).agree is agree


async def test_a_prediction_on_the_broker_becomes_a_pair_on_the_broker(shadow: Shadow) -> None:
    broker = KafkaBroker("nowhere:9092")
    replays = Replays(shadow.candidate, shadow.load.is_busy, Publisher(broker, "shadow"), shadow.decisions, 4)
    service = Handlers(ShadowSettings(), shadow.sampling, OneTrainingIndex().for_rollout, shadow.decisions, replays)
    service.subscribe(Consumers(broker, "shadow", ShadowSettings()))
    await service.rollouts.read_to({})
    await service.tasks.read_to({})
    pairs: list[ShadowCompared] = []

    async def record(event: ShadowCompared) -> None:
        pairs.append(event)

    Consumers(broker, "deployer", ShadowSettings()).on(ShadowCompared, record)
    async with TestKafkaBroker(broker):
        await Publisher(broker, "deployer").publish(rollout())
        await Publisher(broker, "gateway").publish(prediction())
    assert [texts(pair) for pair in pairs] == [("refund", "delivery")]
