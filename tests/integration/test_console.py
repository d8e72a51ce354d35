"""The console on the real broker and database: questions, answers, corrections, cycles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa

from deploy.devstack.ports import take_ports
from schemas.base import Variant, utc_now
from schemas.conversation import Answer, Call, Message, Role
from schemas.cycles import CycleFinished, CycleStarted, StepProgressed
from schemas.failures import ExemplarSource, FailureMode, FailuresClustered
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from schemas.rollouts import Evidence, RolloutChanged, Stage
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.console.domain import GivenAnswer, ReviewAnswer, ReviewerCounts, correction_of
from services.console.handlers import Handlers
from services.console.history import PostgresCycleHistory
from services.console.main import MIGRATIONS, NAME, build
from services.console.pages.overview import _overview
from services.console.reviews import Reviews
from services.console.settings import ConsoleSettings
from services.console.storage import PostgresQueue
from shared.kafka.broker import build_broker
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher
from shared.report.html import fragment
from shared.service import running
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.integration.gateway_process import read_topic
from tests.unit.console.fakes import with_tools
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
RETURNS_AFTER = timedelta(hours=12)


@pytest.fixture
def task() -> str:
    """Return a task of the test's own: the tests share the stack."""
    return f"console-{uuid4().hex[:8]}"


@pytest.fixture
async def queue(stack_settings: Settings) -> AsyncIterator[PostgresQueue]:
    await migrate(stack_settings, NAME, MIGRATIONS)
    engine = build_engine(stack_settings, NAME)
    yield PostgresQueue(engine, RETURNS_AFTER)
    await engine.dispose()


@pytest.fixture
async def history(stack_settings: Settings) -> AsyncIterator[PostgresCycleHistory]:
    await migrate(stack_settings, NAME, MIGRATIONS)
    engine = build_engine(stack_settings, NAME)
    yield PostgresCycleHistory(engine)
    await engine.dispose()


def question(task: str, name: str, priority: float = 0.5, **more: Any) -> LabelRequested:
    fields = {
        "task": task, "task_revision": "r1", "request_id": f"{task}-{name}", "prediction_id": f"{task}.{name}",
        "purpose": Purpose.LOW_CONFIDENCE, "answers": (Answer(text="refund"),), "labels": ("delivery", "refund"),
        "call": Call(messages=(Message(role=Role.USER, content=f"what of {name}?\x00"),)),
        "priority": priority, "occurred_at": NOON,
    }  # fmt: skip
    return LabelRequested(**{**fields, **more})


def ticket(task: str, name: str, ticket_id: str = "") -> LabelRequested:
    answers = (Answer(text="refund"), Answer(text="delivery"))
    return question(
        task, name, purpose=Purpose.DISCORDANT_PAIR, answers=answers, ticket_id=f"{task}-{ticket_id or name}"
    )


def given(answer: ReviewAnswer, at: datetime, edits: int = 0) -> GivenAnswer:
    return GivenAnswer(answer, edits, at, ("Maria Gonzalez",))


def names(task: str, found: list[LabelRequested]) -> list[str]:
    return [request.request_id.removeprefix(f"{task}-") for request in found]


async def test_questions_are_ordered_by_priority_and_tickets_by_arrival(queue: PostgresQueue, task: str) -> None:
    asked = [question(task, "b", 0.2), question(task, "a", 0.9), ticket(task, "t1"), ticket(task, "t2")]
    await queue.add_requests(asked)
    await queue.add_requests(asked)
    assert names(task, await queue.other_questions(task, None, "ann", 9)) == ["a", "b"]
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t1", "t2"]
    assert await queue.open_by_purpose({task: None}) == {task: {"low_confidence": 2, "discordant_pair": 2}}


async def test_half_of_a_sample_is_a_random_half_and_not_the_older_one(queue: PostgresQueue, task: str) -> None:
    sample = [question(task, str(number), purpose=Purpose.AUDIT, priority=1.5) for number in range(40)]
    await queue.add_requests([*sample, question(task, "complaint", 1.75)])
    first, *half = names(task, await queue.other_questions(task, None, "ann", 21))
    assert first == "complaint"
    assert names(task, await queue.other_questions(task, None, "ben", 21)) == [first, *half], "overlap needs one order"
    assert 1 <= sum(int(name) >= 20 for name in half) < 20


async def test_a_question_is_open_until_enough_people_have_answered(queue: PostgresQueue, task: str) -> None:
    asked = question(task, "q", overlap=2)
    await queue.add_requests([asked])
    for _ in range(2):
        await queue.record(asked.request_id, "ann", given(ReviewAnswer(label="refund"), NOON))
    assert await queue.request(asked.request_id) == (asked, 1)
    assert await queue.other_questions(task, None, "ann", 9) == []
    assert await queue.other_questions(task, None, "ben", 9) == [asked]
    await queue.record(asked.request_id, "ben", given(ReviewAnswer(label="delivery"), NOON))
    assert await queue.request(asked.request_id) == (asked, 0)
    assert await queue.other_questions(task, None, "cleo", 9) == []


async def test_a_changed_answer_takes_the_place_of_the_first_and_its_question_needs_no_other_number(
    queue: PostgresQueue, task: str
) -> None:
    asked, minute = question(task, "q", overlap=2), timedelta(minutes=1)
    await queue.add_requests([asked, question(task, "other"), question(f"{task}-b", "of another task")])
    first, second = (given(ReviewAnswer(label=label), NOON + n * minute, n) for n, label in enumerate(("refund", "no")))
    for answer in (first, second, first, second):  # Recorded again, out of order.
        await queue.record(asked.request_id, "ann", answer)
    assert await queue.given(asked.request_id, "ann") == second
    assert await queue.request(asked.request_id) == (asked, 1), "one person has answered"
    await queue.record(f"{task}-other", "ann", given(ReviewAnswer(label="refund"), NOON + 2 * minute))
    await queue.record(f"{task}-b-of another task", "ann", given(ReviewAnswer(label="refund"), NOON + 3 * minute))
    answers = await queue.answers(task, "ann", 9, None)
    assert names(task, [answered.request for answered in answers]) == ["other", "q"], "the last first"
    assert [answered.given for answered in await queue.answers(task, "ann", 9, NOON + 2 * minute)] == [second]
    assert await queue.answers(task, "ben", 9, None) == []


def ago(hours: float) -> datetime:
    return utc_now() - timedelta(hours=hours)


async def test_a_skipped_question_goes_to_others_and_not_back_to_whoever_skipped_it(
    queue: PostgresQueue, task: str
) -> None:
    await queue.add_requests([ticket(task, "t1"), ticket(task, "t2"), question(task, "q")])
    for name in ("t1", "q"):
        for hours in (1, 0, 13):  # Again, and redelivered out of order.
            assert await queue.skip(f"{task}-{name}", "ann", ago(hours))
    await queue.add_requests([ticket(task, "t1"), question(task, "q")])
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t2"]
    assert await queue.other_questions(task, None, "ann", 9) == []
    assert names(task, await queue.tickets(task, None, "ben", 9)) == ["t1", "t2"], "it keeps its place"
    assert names(task, await queue.other_questions(task, None, "ben", 9)) == ["q"]
    assert await queue.open_by_purpose({task: None}) == {task: {"low_confidence": 1, "discordant_pair": 2}}, (
        "it is open"
    )
    assert not await queue.skip(f"{task}-unknown", "ann", ago(0))


async def test_a_skipped_question_comes_back_only_where_nobody_else_is_there(queue: PostgresQueue, task: str) -> None:
    await queue.add_requests([ticket(task, "t1"), ticket(task, "t2"), ticket(task, "t3")])
    await queue.skip(f"{task}-t1", "ann", ago(11.9))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t2", "t3"], "not yet"
    await queue.skip(f"{task}-t2", "ann", ago(12.1))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t2", "t3"], "a team of one is not stuck"
    await queue.record(f"{task}-t3", "ben", given(ReviewAnswer(label="refund"), ago(12.2)))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t2"], "ben is gone"
    await queue.add_requests([ticket(task, "t4")])
    await queue.skip(f"{task}-t4", "ben", ago(1))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t4"], "ben is there, and t2 is for him"
    await queue.skip(f"{task}-t2", "ben", ago(1))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t2", "t4"], "he skipped it, too"
    await queue.skip(f"{task}-t2", "ann", ago(0))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t4"], "skipped anew, it waits anew"


async def test_it_is_known_who_had_another_question_about_a_pairs_prediction_since(
    queue: PostgresQueue, task: str
) -> None:
    pair, again = (
        ticket(task, name, "t1").model_copy(update={"prediction_id": f"{task}.p"}) for name in ("t1", "t1.2")
    )
    shown = question(task, "q", prediction_id=f"{task}.p")
    await queue.add_requests([pair, again, shown])
    for request in (pair, again):
        await queue.record(request.request_id, "ann", given(ReviewAnswer(preference="a"), ago(2)))
    assert not await queue.has_had_another(pair, "ann", ago(3))
    await queue.skip(shown.request_id, "ann", ago(1))
    assert await queue.has_had_another(pair, "ann", ago(2))
    assert not await queue.has_had_another(pair, "ann", ago(0.5)), "that was before"
    assert not await queue.has_had_another(pair, "ben", ago(2))


async def test_a_skipped_tie_break_comes_back_though_those_are_there_who_disagreed(
    queue: PostgresQueue, task: str
) -> None:
    asked = question(task, "q", overlap=2)
    tie = question(task, "tie", purpose=Purpose.TIE_BREAK, prediction_id=asked.prediction_id)
    await queue.add_requests([asked, tie])
    for reviewer, label in (("ann", "refund"), ("ben", "delivery")):
        await queue.record(asked.request_id, reviewer, given(ReviewAnswer(label=label), ago(1)))
    await queue.skip(tie.request_id, "cleo", ago(12.1))
    assert names(task, await queue.other_questions(task, None, "cleo", 9)) == ["tie"]
    await queue.add_requests([question(task, "other")])
    await queue.skip(f"{task}-other", "dan", ago(1))
    assert names(task, await queue.other_questions(task, None, "cleo", 9)) == ["other"], (
        "dan is there, and it is for him"
    )


async def test_what_one_person_could_not_tell_is_asked_of_a_second_one(queue: PostgresQueue, task: str) -> None:
    first, second = ticket(task, "t1"), ticket(task, "t1.2", "t1")
    await queue.add_requests([first])
    await queue.record(first.request_id, "ann", given(ReviewAnswer(preference="cannot_tell"), ago(1)))
    await queue.add_requests([second])
    assert await queue.tickets(task, None, "ann", 9) == []
    assert await queue.tickets(task, None, "ben", 9) == [second]


@pytest.mark.parametrize(("hours", "is_back"), [(11.9, False), (12.1, True)])
async def test_what_the_only_reviewer_could_not_tell_comes_back_to_them(
    queue: PostgresQueue, task: str, hours: float, is_back: bool
) -> None:
    first, second = ticket(task, "t1"), ticket(task, "t1.2", "t1")
    await queue.add_requests([first, second])
    await queue.record(first.request_id, "ann", given(ReviewAnswer(preference="cannot_tell"), ago(hours)))
    assert await queue.tickets(task, None, "ann", 9) == ([second] if is_back else [])
    await queue.skip(second.request_id, "ann", ago(0))
    assert await queue.tickets(task, None, "ann", 9) == []


async def test_a_pair_of_texts_is_not_asked_of_whoever_was_shown_productions_answer(
    queue: PostgresQueue, task: str
) -> None:
    of_texts = {"labels": (), "prediction_id": f"{task}.p"}
    corrected = question(task, "q", **of_texts)
    of_labels = ticket(task, "labels").model_copy(update={"prediction_id": f"{task}.p"})
    await queue.add_requests([corrected, ticket(task, "texts").model_copy(update=of_texts), of_labels])
    await queue.record(corrected.request_id, "ann", given(ReviewAnswer(label="Sorry!"), ago(12.1)))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["texts", "labels"], "a team of one is not stuck"
    await queue.add_requests([question(task, "other")])
    await queue.skip(f"{task}-other", "ben", ago(1))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["labels"]
    assert names(task, await queue.tickets(task, None, "ben", 9)) == ["texts", "labels"]
    await queue.skip(corrected.request_id, "ben", ago(1))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["texts", "labels"], "ben has seen it, too"


async def test_it_is_counted_who_answers_cannot_tell_and_skips(queue: PostgresQueue, task: str) -> None:
    await queue.add_requests([ticket(task, f"t{n}") for n in range(5)] + [question(task, "q", user_hash="h1")])
    for _ in range(2):
        await queue.record(f"{task}-t0", "ann", given(ReviewAnswer(label="refund"), ago(1)))
        await queue.record(f"{task}-t1", "ann", given(ReviewAnswer(preference="cannot_tell"), ago(1)))
        for name in ("t2", "t3", "q"):
            await queue.skip(f"{task}-{name}", "ann", ago(1))
        await queue.skip(f"{task}-t2", "ben", ago(1))
    assert await queue.reviewers(task) == [ReviewerCounts("ann", 1, 1, 3), ReviewerCounts("ben", 0, 0, 1)]
    await queue.erase(erasure(task, "h1", utc_now()))
    assert await queue.reviewers(task) == [ReviewerCounts("ann", 1, 1, 2), ReviewerCounts("ben", 0, 0, 1)]
    assert not await queue.skip(f"{task}-q", "ben", ago(0)), "nothing is stored about a question of an erased person"
    await queue.drop_before(task, NOON + timedelta(hours=1))
    open_tickets = [ReviewerCounts("ann", 0, 0, 2), ReviewerCounts("ben", 0, 0, 1)]
    assert await queue.reviewers(task) == open_tickets, "what was answered is gone"


async def test_of_an_older_revision_all_questions_of_the_tasks_kind_are_asked_but_no_pairs(
    queue: PostgresQueue, task: str
) -> None:
    spec = TaskSpec(name=task, kind=TaskKind.CLASSIFICATION, system_prompt="p", labels=("delivery", "refund"))
    new = question(task, "new", task_revision=spec.revision)
    new_pair = ticket(task, "new pair").model_copy(update={"task_revision": spec.revision})
    await queue.add_requests(
        [question(task, "old"), question(task, "text", labels=()), new, ticket(task, "t"), new_pair]
    )
    assert sorted(names(task, await queue.other_questions(task, spec, "ann", 9))) == ["new", "old"]
    assert names(task, await queue.tickets(task, spec, "ann", 9)) == ["new pair"]
    assert await queue.open_by_purpose({task: spec}) == {task: {"low_confidence": 2, "discordant_pair": 1}}


async def test_a_stored_question_is_given_what_the_user_wrote_and_its_turn_stays_but_an_audit_stays_blind(
    queue: PostgresQueue, task: str
) -> None:
    asked = [question(task, "q", 0.2), question(task, "audit", 0.5, purpose=Purpose.AUDIT)]
    await queue.add_requests(asked)
    wrote = [request.model_copy(update={"suggestion": "refund", "purpose": Purpose.FEEDBACK}) for request in asked]
    for _ in range(2):
        await queue.add_requests([request.model_copy(update={"priority": 0.9}) for request in wrote])
        await queue.add_requests(asked)
    found = await queue.other_questions(task, None, "ann", 9)
    assert [(request.purpose, request.suggestion) for request in found] == [
        (Purpose.AUDIT, None), (Purpose.LOW_CONFIDENCE, "refund"),
    ]  # fmt: skip


@pytest.mark.parametrize("erased_first", [True, False])
async def test_a_user_whom_only_their_feedback_names_can_be_erased(
    queue: PostgresQueue, task: str, erased_first: bool
) -> None:
    nobodys = question(task, "q", predicted_at=NOON)
    wrote = nobodys.model_copy(update={"suggestion": "refund", "user_hash": "h1"})
    await queue.add_requests([nobodys] if erased_first else [nobodys, wrote])
    await queue.erase(erasure(task, "h1", NOON))
    await queue.add_requests([wrote])
    assert await queue.other_questions(task, None, "ann", 9) == ([nobodys] if erased_first else [])


async def test_what_an_erased_user_wrote_is_given_to_no_question(queue: PostgresQueue, task: str) -> None:
    theirs = question(task, "q", user_hash="h1", predicted_at=NOON)
    await queue.add_requests([theirs])
    await queue.erase(erasure(task, "h1", NOON))
    await queue.add_requests([theirs.model_copy(update={"suggestion": "refund"})])
    assert await queue.request(theirs.request_id) is None


@pytest.mark.parametrize("erased_first", [True, False])
async def test_what_an_erased_person_wrote_on_anothers_question_is_deleted(
    queue: PostgresQueue, task: str, erased_first: bool
) -> None:
    theirs = question(task, "q", user_hash="h1", predicted_at=NOON)
    wrote = theirs.model_copy(update={"suggestion": "refund", "suggested_by": "h2"})
    await queue.add_requests([theirs] if erased_first else [theirs, wrote])
    await queue.erase(erasure(task, "h2", NOON - timedelta(minutes=1)))  # What they wrote is asked about later.
    await queue.add_requests([wrote])
    assert await queue.other_questions(task, None, "ann", 9) == [theirs]


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("labels", [(), ("refund", "login")])
async def test_an_answer_in_an_erased_persons_words_goes_with_the_question(
    queue: PostgresQueue, task: str, labels: tuple[str, ...], is_answered: bool
) -> None:
    """Reviewers take what a user wrote with a key. A label of the task is nobody's words."""
    shown = question(task, "q", user_hash="h1", predicted_at=NOON, labels=labels, answers=(Answer(text="no"),))
    shown = shown.model_copy(update={"suggestion": "refund", "suggested_by": "h2"})
    await queue.add_requests([shown])
    given = GivenAnswer(ReviewAnswer(label="refund"), 0, NOON)
    assert correction_of(shown, "ann", given, 0).suggested_by == (None if labels else "h2")
    refuted = GivenAnswer(ReviewAnswer(label="no"), 0, NOON)
    assert correction_of(shown, "ann", refuted, 0).suggested_by is None, "it is the model's own answer"
    if is_answered:
        await queue.record(shown.request_id, "ann", given)
    if not labels:  # The answer may have been taken from the first one, or be taken from a page that shows it.
        await queue.add_requests([shown.model_copy(update={"suggestion": "login", "suggested_by": "h3"})])
    await queue.erase(erasure(task, "h2", NOON + timedelta(hours=1)))
    assert (await queue.request(shown.request_id) is None) is (not labels)
    answers = await queue.answers(task, "ann", 9, None)
    assert [answered.given.answer.label for answered in answers] == (["refund"] if labels and is_answered else [])
    assert all(answered.request.suggested_by is None for answered in answers)


def erasure(task: str, subject_hash: str, at: datetime) -> SubjectForgotten:
    return SubjectForgotten(task=task, task_revision="r1", subject_hash=subject_hash, occurred_at=at)


@pytest.mark.parametrize("erased_first", [True, False])
async def test_an_erased_persons_questions_are_deleted_in_whatever_order_they_arrive(
    queue: PostgresQueue, task: str, erased_first: bool
) -> None:
    theirs, other = question(task, "theirs", user_hash="h1"), question(task, "other", user_hash="h2")
    if not erased_first:
        await queue.add_requests([theirs, other])
        await queue.record(theirs.request_id, "ann", given(ReviewAnswer(label="refund"), NOON))
    await queue.erase(erasure(task, "h1", NOON + timedelta(hours=1)))
    await queue.add_requests([theirs, other])
    assert await queue.request(theirs.request_id) is None
    assert await queue.given(theirs.request_id, "ann") is None
    assert names(task, await queue.other_questions(task, None, "ben", 9)) == ["other"]


async def test_a_question_is_erased_by_the_time_of_its_prediction(queue: PostgresQueue, task: str) -> None:
    hour = timedelta(hours=1)
    late = question(task, "late", user_hash="h1", predicted_at=NOON, occurred_at=NOON + 2 * hour)
    new = question(task, "new", user_hash="h1", predicted_at=NOON + 2 * hour, occurred_at=NOON + 3 * hour)
    for _ in range(2):
        await queue.add_requests([late, new])
        await queue.erase(erasure(task, "h1", NOON + hour))
        assert names(task, await queue.other_questions(task, None, "ben", 9)) == ["new"]


async def test_old_questions_are_dropped_by_the_time_of_their_prediction(queue: PostgresQueue, task: str) -> None:
    hour = timedelta(hours=1)
    old = question(task, "old", predicted_at=NOON - hour, occurred_at=NOON + hour)
    await queue.add_requests([old, question(task, "new", predicted_at=NOON)])
    await queue.record(old.request_id, "ann", given(ReviewAnswer(label="refund"), NOON))
    await queue.drop_before("another-task", NOON + hour)
    assert await queue.request(old.request_id) is not None
    await queue.drop_before(task, NOON)
    assert await queue.given(old.request_id, "ann") is None
    assert names(task, await queue.other_questions(task, None, "ben", 9)) == ["new"]


async def test_a_ticket_that_is_open_is_kept_however_old_until_its_comparison_ends(
    queue: PostgresQueue, task: str, history: PostgresCycleHistory
) -> None:
    """The deployer waits for its answer, and counts what is never answered as lost."""
    late, of_cycle = NOON + timedelta(days=30), {"cycle_id": f"{task}-1", "predicted_at": NOON}
    old, answered = (ticket(task, name).model_copy(update=of_cycle) for name in ("old", "answered"))
    await queue.add_requests([old, answered])
    await queue.record(answered.request_id, "ann", given(ReviewAnswer(label="refund"), NOON))
    await queue.drop_before(task, late)
    assert await queue.request(old.request_id) == (old, 1)
    assert await queue.request(answered.request_id) is None
    await Handlers(queue, history).on_rollout(rollout(task, Stage.REJECTED, NOON + timedelta(days=1)))
    await queue.drop_before(task, late)
    assert await queue.request(old.request_id) is None


async def test_a_third_opinion_is_not_asked_of_one_of_the_first_two(queue: PostgresQueue, task: str) -> None:
    first = question(task, "first", overlap=2)
    third = question(task, "third", purpose=Purpose.TIE_BREAK, prediction_id=first.prediction_id)
    await queue.add_requests([first, third])
    for reviewer in ("ann", "ben"):
        await queue.record(first.request_id, reviewer, given(ReviewAnswer(label="refund"), NOON))
        assert await queue.other_questions(task, None, reviewer, 9) == []
    assert await queue.other_questions(task, None, "cleo", 9) == [third]


def rollout(task: str, stage: Stage, at: datetime) -> RolloutChanged:
    spec = TaskSpec(name=task, kind=TaskKind.CLASSIFICATION, system_prompt="p", labels=("refund", "delivery"))
    return RolloutChanged(
        task=task, task_revision="r1", cycle_id=f"{task}-1", occurred_at=at, rollout_id="rollout-1", stage=stage,
        primary_adapter=None, candidate_adapter="a1", candidate_uri="u", dataset_uri="d", data_cutoff=NOON,
        evidence=Evidence(alpha=0.01), reason="r", spec=spec,
    )  # fmt: skip


async def test_tickets_of_a_rollout_that_has_ended_are_closed(
    queue: PostgresQueue, history: PostgresCycleHistory, task: str
) -> None:
    minute = timedelta(minutes=1)
    asked = [ticket(task, f"t{n}").model_copy(update={"cycle_id": f"{task}-1", "occurred_at": NOON}) for n in (1, 2)]
    other = ticket(task, "other").model_copy(update={"cycle_id": f"{task}-2"})
    handlers = Handlers(queue, history)
    await queue.add_requests([asked[0], other, question(task, "q")])
    await handlers.on_rollout(rollout(task, Stage.CANARY, NOON + minute))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["t1", "other"]
    answered = [request.model_copy(update={"request_id": f"{request.request_id}+"}) for request in (asked[0], other)]
    await queue.add_requests(answered)
    for request in answered:
        await queue.record(request.request_id, "eve", given(ReviewAnswer(label="refund"), NOON))
    assert [found.ended for found in await queue.answers(task, "eve", 9, None)] == [False, False]
    await handlers.on_rollout(rollout(task, Stage.REJECTED, NOON + 2 * minute))
    ended = {found.request.request_id: found.ended for found in await queue.answers(task, "eve", 9, None)}
    assert ended == {f"{task}-t1+": True, f"{task}-other+": False}, "another answer to it no longer moves the rollout"
    await queue.add_requests(asked)  # Questions arrive on another topic, perhaps later.
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["other"]
    assert await queue.open_by_purpose({task: None}) == {task: {"discordant_pair": 1, "low_confidence": 1}}
    repeated = ticket(task, "repeated").model_copy(update={"cycle_id": f"{task}-1", "occurred_at": NOON + 3 * minute})
    await queue.add_requests([repeated])
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["other", "repeated"]


async def test_tickets_of_fresh_pairs_stay_open_until_the_control_has_ended(
    queue: PostgresQueue, history: PostgresCycleHistory, task: str
) -> None:
    minute, handlers = timedelta(minutes=1), Handlers(queue, history)
    before, fresh = (
        ticket(task, name).model_copy(update={"cycle_id": f"{task}-1", "occurred_at": NOON + asked_at * minute})
        for name, asked_at in (("before", 0), ("fresh", 2))
    )
    await queue.add_requests([before])
    promoted = rollout(task, Stage.PROMOTED, NOON + minute).model_copy(update={"control": True})
    await handlers.on_rollout(promoted)
    await queue.add_requests([fresh])
    newer = {"event_id": uuid4(), "occurred_at": NOON + 3 * minute, "evidence": Evidence(alpha=0.01, control_labels=1)}
    await handlers.on_rollout(promoted.model_copy(update=newer))
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["fresh"]
    await handlers.on_rollout(rollout(task, Stage.PROMOTED, NOON + 4 * minute))
    assert await queue.tickets(task, None, "ann", 9) == []


async def test_tickets_that_were_asked_while_a_promotion_waited_are_closed_with_it(
    queue: PostgresQueue, history: PostgresCycleHistory, task: str
) -> None:
    minute, handlers = timedelta(minutes=1), Handlers(queue, history)
    asked = [
        ticket(task, name).model_copy(update={"cycle_id": f"{task}-1", "occurred_at": NOON + asked_at * minute})
        for name, asked_at in (("waiting", 2), ("late", 2), ("fresh", 6))
    ]
    await queue.add_requests(asked[:1])
    flags_set = {"control": True, "promoted_at": NOON + 5 * minute}
    await handlers.on_rollout(rollout(task, Stage.PROMOTED, NOON + minute).model_copy(update=flags_set))
    await queue.add_requests(asked[1:])
    assert names(task, await queue.tickets(task, None, "ann", 9)) == ["fresh"]


async def test_a_running_candidates_evidence_is_stored_as_it_comes_in(history: PostgresCycleHistory, task: str) -> None:
    minute = timedelta(minutes=1)
    assert await history.running_rollout(task) == []
    older = rollout(task, Stage.REJECTED, NOON).model_copy(update={"rollout_id": "rollout-0"})
    events = [rollout(task, Stage.SHADOW, NOON + number * minute) for number in range(1, 4)]
    events[1:] = [
        event.model_copy(update={"evidence": Evidence(alpha=0.01, labels=number, wealth=1.5 * number)})
        for number, event in enumerate(events[1:], 1)
    ]
    for event in (older, events[0], events[2], events[1], events[2]):  # Redelivered, and out of order.
        await history.add_event(event)
    running = await history.running_rollout(task)
    assert [(e["evidence"]["labels"], e["evidence"]["wealth"]) for e in running] == [(0, 1.0), (1, 1.5), (2, 3.0)]
    shown = {"kind": "classification", "rollout": {"canary_wealth": 20.0}}
    assert all(e["spec"] == shown for e in running), "the task's texts are not stored"
    await history.add_event(rollout(task, Stage.REJECTED, NOON + 9 * minute))
    assert await history.running_rollout(task) == []


def clustered(task: str) -> FailuresClustered:
    """Return an event with one failure mode, which quotes h1 at noon and h2 a minute later."""
    sources = tuple(
        ExemplarSource(prediction_id=f"p{n}", user_hash=f"h{n}", predicted_at=NOON + timedelta(minutes=n - 1))
        for n in (1, 2)
    )
    mode = FailureMode(
        mode_id="mode-1", name="late parcel", words=("late", "parcel"), exemplars=("where?", "it is late"),
        sources=sources, size=2, share=1.0,
    )  # fmt: skip
    return FailuresClustered(
        task=task, task_revision="r1", cycle_id=f"{task}-1", occurred_at=NOON + timedelta(hours=1), suspects=2,
        noise=0, modes=(mode,), data_cutoff=NOON, fence=(),
    )  # fmt: skip


async def test_a_page_quotes_nothing_past_its_tasks_retention(history: PostgresCycleHistory, task: str) -> None:
    await history.add_event(clustered(task))
    await history.drop_before(task, NOON + timedelta(minutes=1))
    (stored,) = await history.events(f"{task}-1")
    assert [(m["exemplars"], m["size"]) for m in stored["event"]["modes"]] == [(["it is late"], 2)]


@pytest.mark.parametrize("erased_first", [True, False])
async def test_a_page_quotes_no_erased_person(history: PostgresCycleHistory, task: str, erased_first: bool) -> None:
    event = clustered(task)
    if not erased_first:
        await history.add_event(event)
    await history.erase(erasure(task, "h1", NOON))
    await history.add_event(event)
    (stored,) = await history.events(f"{task}-1")
    assert [m["exemplars"] for m in stored["event"]["modes"]] == [["it is late"]]
    assert stored["event"]["suspects"] == 2


async def test_a_cycles_state_is_read_from_its_events(history: PostgresCycleHistory, task: str) -> None:
    common: dict[str, Any] = {"task": task, "task_revision": "r1", "cycle_id": f"{task}-1"}
    begun = CycleStarted(**common, occurred_at=NOON, trigger="cron", data_cutoff=NOON)
    for _ in range(2):
        await history.add_event(begun)
    (cycle,) = await history.cycles(task)
    assert (cycle["cycle_id"], cycle["trigger"], cycle["outcome"]) == (f"{task}-1", "cron", None)
    for minute in (2, 1):
        at = NOON + timedelta(minutes=minute)
        await history.add_progress(StepProgressed(**common, occurred_at=at, step="training", done=minute, total=3))
    progress = await history.progress(f"{task}-1")
    assert progress is not None
    assert progress["done"] == 2
    await history.add_event(
        CycleFinished(**common, occurred_at=NOON + timedelta(hours=1), outcome="rejected", reason="no", seconds=3600)
    )
    topics = [stored["topic"] for stored in await history.events(f"{task}-1")]
    assert topics == [
        "cycles.started.v1",
        "cycles.finished.v1",
    ]
    assert (await history.cycles(task))[0]["outcome"] == "rejected"


async def test_losses_of_a_training_are_kept_beside_its_newest_progress(
    history: PostgresCycleHistory, task: str
) -> None:
    common: dict[str, Any] = {"task": task, "task_revision": "r1", "cycle_id": f"{task}-1", "step": "training"}
    assert await history.losses(f"{task}-1") == []
    reports = [(1, 2.0, None), (2, 1.0, 1.5), (2, 1.0, 1.5), (3, 0.5, 1.5)]  # One of them is delivered twice.
    for second, (step, loss, held_out) in enumerate(reports):
        at = NOON + timedelta(seconds=second)
        await history.add_progress(
            StepProgressed(**common, occurred_at=at, done=step, total=3, loss=loss, validation_loss=held_out)
        )
    evaluating = StepProgressed(**(common | {"step": "evaluation"}), occurred_at=NOON + timedelta(1), done=1, total=9)
    await history.add_progress(evaluating)
    assert await history.losses(f"{task}-1") == [(3, 1, 2.0, None), (3, 2, 1.0, 1.5), (3, 3, 0.5, None)]
    progress = await history.progress(f"{task}-1")
    assert progress is not None
    assert progress["step"] == "evaluation"


async def test_an_hour_is_replaced_not_added(history: PostgresCycleHistory, task: str) -> None:
    for minute, count in ((1, 10), (3, 30), (2, 20)):
        hour = PredictionsRolledUp(
            task=task, task_revision="r1", occurred_at=NOON + timedelta(minutes=minute), hour=NOON,
            variant=Variant.BASE, predictions=count, latency_ms_p50=1, latency_ms_p95=2,
        )  # fmt: skip
        await history.add_hour(hour)
    assert await history.predictions_since([task], NOON) == {task: 30}
    assert await history.predictions_since([task], NOON + timedelta(hours=1)) == {}


async def test_the_overview_reads_as_often_however_many_tasks_there_are(
    queue: PostgresQueue, history: PostgresCycleHistory, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    await tasks.read_to({})
    reviews = Reviews(queue, None, tasks, None)  # type: ignore[arg-type]  # Nothing is answered.
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement)

    for store in (queue, history):
        sa.event.listen(store._engine.sync_engine, "before_cursor_execute", note)
    counts, cards = [], []
    for number in (1, 2, 3):
        name = f"{task}-{number}"
        spec = TaskSpec(name=name, kind=TaskKind.CLASSIFICATION, system_prompt="p", labels=("delivery", "refund"))
        await tasks.put(name, TaskChanged(task=name, task_revision=spec.revision, spec=spec))
        await queue.add_requests([question(name, f"q{n}") for n in range(number)])
        if number > 1:
            await add_cycles(history, name, number)
        statements.clear()
        cards = await _overview(reviews, history, tasks)
        counts.append(len(statements))
    assert counts[0] == counts[1] == counts[2]
    pages = {title: fragment(blocks) for title, blocks in cards if not isinstance(blocks, str)}
    for number in (1, 2, 3):
        page = pages[f"{task}-{number}"]
        assert f"<b>{number}</b><span>open questions" in page
        assert ("No cycle yet." in page) is ("base model" in page) is (number == 1)
        if number > 1:
            words = f"adapter-{number}", f">{task}-{number}-{number}</a>", f"<b>{number * 10}</b>", "rejected"
            assert [word for word in words if word not in page] == []


async def add_cycles(history: PostgresCycleHistory, task: str, number: int) -> None:
    """As many cycles as the number says, of which the last one has ended, an adapter that serves, and an hour."""
    for cycle in range(1, number + 1):
        common: dict[str, Any] = {"task": task, "task_revision": "r1", "cycle_id": f"{task}-{cycle}"}
        at = NOON + timedelta(days=cycle)
        await history.add_event(CycleStarted(**common, occurred_at=at, trigger="cron", data_cutoff=NOON))
        changed = rollout(task, Stage.REJECTED, at)
        await history.add_event(changed.model_copy(update={"primary_adapter": f"adapter-{cycle}"}))
    end = CycleFinished(**common, occurred_at=at, outcome="rejected", reason="no", seconds=3600)
    await history.add_event(end)
    for hours_ago, count in ((1, 6 * number), (2, 4 * number), (30, 1_000)):
        hour = PredictionsRolledUp(
            task=task, task_revision="r1", hour=utc_now() - timedelta(hours=hours_ago), variant=Variant.BASE,
            predictions=count, latency_ms_p50=1, latency_ms_p95=2,
        )  # fmt: skip
        await history.add_hour(hour)


@asynccontextmanager
async def console(stack_settings: Settings, port: int) -> AsyncIterator[httpx.AsyncClient]:
    settings = ConsoleSettings.load(home=stack_settings.home, console_port=port)
    transport = httpx.AsyncHTTPTransport(retries=8)  # The port opens a moment after the start.
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS, transport=transport)
    async with running([build(settings)]), client:
        yield client


async def corrections_of(settings: Settings, task: str) -> list[CorrectionSubmitted]:
    records = await read_topic(settings, "corrections.submitted.v1")
    return [CorrectionSubmitted.model_validate_json(value) for key, value in records if key.startswith(task.encode())]


async def test_a_question_from_kafka_is_answered_over_http_and_published_once(
    stack_settings: Settings, task: str
) -> None:
    broker = build_broker(stack_settings, "deployer")
    await broker.start()
    publisher = Publisher(broker, "deployer")
    await broker.publish(b"{broken", "labels.requested.v1", key=b"k", headers={"content-type": "application/json"})
    asked = (question(task, "q1", 0.3), ticket(task, "t1"), question(task, "q2", 0.8, call=with_tools(truncated=True)))
    for event in asked:
        await publisher.publish(event)
    await broker.stop()

    async with console(stack_settings, take_ports(1)[0]) as client:

        async def items() -> list[dict[str, Any]] | None:
            answer = await client.get("/api/queue", params={"task": task, "reviewer": "ann", "limit": 10})
            found = answer.json()["items"] if answer.status_code == 200 else []
            return found if len(found) == 3 else None

        found = await until(items)
        assert [item["request_id"] for item in found] == [f"{task}-t1", f"{task}-q2", f"{task}-q1"]
        assert Call.model_validate(found[1]["call"]) == asked[2].call
        body = {"request_id": f"{task}-t1", "reviewer": "ann", "label": "delivery", "seconds": 1.5}
        answers = [await client.post("/api/corrections", json=body) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        count = (await client.get("/api/queue/count", params={"task": task})).json()
        assert count == {"open": 2, "by_purpose": {"low_confidence": 2}}
        unknown = {"request_id": f"{task}-q1", "reviewer": "ann", "label": "parcel"}
        refused = await client.post("/api/corrections", json=unknown)
        assert refused.status_code == 422
        assert "'delivery', 'refund'" in refused.json()["error"]["message"]
        assert (await client.get("/")).status_code == 200
        review = await client.get(f"/review/{task}")
        assert (review.status_code, review.headers["x-frame-options"]) == (200, "DENY")

    (correction,) = await corrections_of(stack_settings, task)
    assert (correction.label, correction.ticket_id, correction.reviewer, correction.seconds) == (
        "delivery", f"{task}-t1", "ann", 1.5,
    )  # fmt: skip
