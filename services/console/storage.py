"""Stores the review queue: questions, answers and skips. Every write is idempotent.

All methods raise DependencyUnavailable while the database is unavailable. The events of cycles are in `history.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    DateTime,
    FromClause,
    Select,
    Update,
    and_,
    cast,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.catalog import topic_of
from schemas.labels import LabelRequested, Purpose
from schemas.predictions import SubjectForgotten
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskSpec
from services.console.domain import (
    RUNNING,
    AnsweredQuestion,
    GivenAnswer,
    ReviewAnswer,
    ReviewerCounts,
    RolloutState,
    comparisons_ended,
    may_be_taken,
    with_suggestion,
    without_erased_suggestion,
    without_suggestion,
)
from services.console.tables import ANSWERS, EVENTS, FORGOTTEN, REQUESTS, SKIPS
from shared.privacy.erasure import erased_among, record_erasure
from shared.storage.database import transaction

_TICKET = REQUESTS.c.purpose == Purpose.DISCORDANT_PAIR.value
_ROLLOUTS = topic_of(RolloutChanged).name
_DEEDS = union_all(
    select(
        REQUESTS.c.task, REQUESTS.c.case_id, REQUESTS.c.prediction_id, ANSWERS.c.reviewer,
        ANSWERS.c.answered_at.label("at"),
        (func.coalesce(ANSWERS.c.preference, "") == "cannot_tell").label("cannot_tell"), false().label("skipped"),
    ).join_from(REQUESTS, ANSWERS, ANSWERS.c.request_id == REQUESTS.c.request_id),
    select(
        REQUESTS.c.task, REQUESTS.c.case_id, REQUESTS.c.prediction_id, SKIPS.c.reviewer, SKIPS.c.skipped_at, false(),
        true(),
    ).join_from(REQUESTS, SKIPS, SKIPS.c.request_id == REQUESTS.c.request_id),
)  # fmt: skip
"""What every reviewer did with every question that they answered or skipped."""
RETURNS_AFTER = timedelta(hours=12)
"""A reviewer gets back after this time what they left to others: a question of the evening is there in the morning."""


class PostgresQueue:
    """The review queue. `returns_after`: see `_left_to_others`."""

    def __init__(self, engine: AsyncEngine, returns_after: timedelta = RETURNS_AFTER) -> None:
        self._engine = engine
        self._returns_after = returns_after

    async def add_requests(self, requests: Sequence[LabelRequested]) -> None:
        """Add questions, except existing ones, those of erased people, and tickets of rollouts that have ended.

        A question that exists and comes with what a user wrote is given it.
        """
        async with transaction(self._engine) as connection:
            people = ((r.task, person) for r in requests for person in (r.user_hash, r.suggested_by))
            erased = await erased_among(connection, FORGOTTEN, people)
            requests = [without_erased_suggestion(r, erased) for r in requests]
            ended = await _ended(connection, _cycles(requests))
            added = [
                r for r in requests if not erased.covers(r.task, r.user_hash, r.happened_at) and not _is_of(ended, r)
            ]
            if added:
                await connection.execute(insert(REQUESTS).on_conflict_do_nothing(), [_row(r) for r in added])
            for request in added:
                if request.suggestion is not None:
                    await _suggest(connection, request)

    async def request(self, request_id: str) -> tuple[LabelRequested, int] | None:
        """Return a question and how many more answers it needs, or None if it does not exist."""
        query = select(REQUESTS.c.request, REQUESTS.c.needed).where(REQUESTS.c.request_id == request_id)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (LabelRequested.model_validate_json(row.request), row.needed)

    async def given(self, request_id: str, reviewer: str) -> GivenAnswer | None:
        """Return this reviewer's answer to this question, or None."""
        theirs = and_(ANSWERS.c.request_id == request_id, ANSWERS.c.reviewer == reviewer)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(select(ANSWERS).where(theirs))).one_or_none()
        return None if row is None else _given(row)

    async def answers(self, task: str, reviewer: str, limit: int, before: datetime | None) -> list[AnsweredQuestion]:
        """Return the questions of the task that this reviewer answered, the last first, each with the answer."""
        theirs = and_(REQUESTS.c.task == task, ANSWERS.c.reviewer == reviewer)
        query = select(REQUESTS.c.request, ANSWERS).join_from(
            ANSWERS, REQUESTS, REQUESTS.c.request_id == ANSWERS.c.request_id
        )
        if before is not None:
            query = query.where(ANSWERS.c.answered_at < before)
        async with transaction(self._engine) as connection:
            rows = await connection.execute(query.where(theirs).order_by(ANSWERS.c.answered_at.desc()).limit(limit))
            found = [(LabelRequested.model_validate_json(row.request), _given(row)) for row in rows]
            ended = await _ended(connection, _cycles(request for request, _ in found))
        return [AnsweredQuestion(request, given, _is_of(ended, request)) for request, given in found]

    async def record(self, request_id: str, reviewer: str, given: GivenAnswer) -> bool:
        """Store an answer, or put it in the place of an earlier one; a first one reduces what its question needs.

        Idempotent. Returns False if there is no such question: its person may have been erased meanwhile.
        """
        fields = {
            "label": given.answer.label, "preference": given.answer.preference, "seconds": given.answer.seconds,
            "surrogates": list(given.surrogates), "edits": given.edits, "answered_at": given.at,
        }  # fmt: skip
        row = {"request_id": request_id, "reviewer": reviewer, **fields}
        theirs = and_(ANSWERS.c.request_id == request_id, ANSWERS.c.reviewer == reviewer)
        async with transaction(self._engine) as connection:
            if not await _lock(connection, request_id):
                return False
            new = insert(ANSWERS).values(row).on_conflict_do_nothing().returning(ANSWERS.c.request_id)
            if (await connection.execute(new)).one_or_none() is not None:
                still_needed = func.greatest(REQUESTS.c.needed - 1, 0)
                await connection.execute(_of(request_id).values(needed=still_needed))
            else:
                await connection.execute(update(ANSWERS).where(theirs, ANSWERS.c.edits < given.edits).values(fields))
            return True

    async def has_had_another(self, request: LabelRequested, reviewer: str, since: datetime) -> bool:
        """Return True if the reviewer has had another question about the prediction since: each shows production's
        answer."""
        deeds = _DEEDS.subquery()
        others = exists().where(
            deeds.c.task == request.task, deeds.c.prediction_id == request.prediction_id,
            deeds.c.reviewer == reviewer, deeds.c.case_id != _case_of(request), deeds.c.at > since,
        )  # fmt: skip
        async with transaction(self._engine) as connection:
            return bool(await connection.scalar(select(others)))

    async def skip(self, request_id: str, reviewer: str, at: datetime) -> bool:
        """Store that a reviewer leaves a question to others. Idempotent. Returns False if there is no such question."""
        skipped = insert(SKIPS).values(request_id=request_id, reviewer=reviewer, skipped_at=at)
        newest = func.greatest(SKIPS.c.skipped_at, skipped.excluded.skipped_at)
        again = skipped.on_conflict_do_update(index_elements=["request_id", "reviewer"], set_={"skipped_at": newest})
        async with transaction(self._engine) as connection:
            if not await _lock(connection, request_id):
                return False
            await connection.execute(again)
            return True

    async def tickets(self, task: str, spec: TaskSpec | None, reviewer: str, limit: int) -> list[LabelRequested]:
        """Return discordant pairs, first in first out: which ones get labels must not depend on their content."""
        query = _open(task, spec).where(_TICKET, self._is_for(reviewer))
        return await self._questions(query.order_by(REQUESTS.c.arrived), limit)

    async def other_questions(
        self, task: str, spec: TaskSpec | None, reviewer: str, limit: int, purpose: Purpose | None = None
    ) -> list[LabelRequested]:
        """Return all other questions, by priority, of equal ones as chance has it: half of a sample is a random half.

        A tie-break is never asked of one of the first two reviewers.
        """
        where = ~_TICKET if purpose is None else REQUESTS.c.purpose == purpose.value
        query = _open(task, spec).where(where, self._is_for(reviewer), ~_asked_before(reviewer))
        return await self._questions(query.order_by(REQUESTS.c.priority.desc(), func.md5(REQUESTS.c.request_id)), limit)

    async def reviewers(self, task: str) -> list[ReviewerCounts]:
        """Count what each reviewer did with the task's questions that are stored, by name."""
        deeds = _DEEDS.subquery()
        cannot_tell, skipped = deeds.c.cannot_tell, deeds.c.skipped
        counts = (func.count().filter(~cannot_tell & ~skipped), func.count().filter(cannot_tell))
        query = select(deeds.c.reviewer, *counts, func.count().filter(skipped)).where(deeds.c.task == task)
        async with transaction(self._engine) as connection:
            rows = await connection.execute(query.group_by(deeds.c.reviewer).order_by(deeds.c.reviewer))
            return [ReviewerCounts(*row) for row in rows]

    async def open_by_purpose(self, specs: Mapping[str, TaskSpec | None]) -> dict[str, dict[str, int]]:
        """Count the questions that still need an answer, by task and purpose. A task without any has no purposes."""
        key = REQUESTS.c.task, REQUESTS.c.purpose
        of_tasks = or_(false(), *(_is_open(task, spec) for task, spec in specs.items()))
        counts: dict[str, dict[str, int]] = {task: {} for task in specs}
        async with transaction(self._engine) as connection:
            query = select(*key, func.count()).where(of_tasks).group_by(*key)
            for task, purpose, count in await connection.execute(query):
                counts[task][purpose] = count
        return counts

    async def has_requests(self, task: str) -> bool:
        """Return True if the queue has any question of this task."""
        async with transaction(self._engine) as connection:
            return bool(await connection.scalar(select(exists().where(REQUESTS.c.task == task))))

    async def erase(self, event: SubjectForgotten) -> None:
        """Delete a person's questions with their answers, and what they wrote on others' questions.

        Of those a question that is answered in words goes as a whole: a reviewer may have taken theirs, or take it from
        a page that still shows it. No redelivery adds theirs again.
        """
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)
            theirs = and_(REQUESTS.c.task == event.task, REQUESTS.c.user_hash == event.subject_hash)
            # Their answers are deleted too: ON DELETE CASCADE.
            await connection.execute(delete(REQUESTS).where(theirs, REQUESTS.c.happened_at <= event.occurred_at))
            wrote = and_(REQUESTS.c.task == event.task, REQUESTS.c.suggested_by == event.subject_hash)
            for row in (await connection.execute(select(REQUESTS.c.request).where(wrote).with_for_update())).all():
                left = without_suggestion(LabelRequested.model_validate_json(row.request))
                if left.labels:
                    await connection.execute(_of(left.request_id).values(_people_and_text(left)))
                else:
                    await connection.execute(delete(REQUESTS).where(REQUESTS.c.request_id == left.request_id))

    async def withdraw(self, event: RolloutChanged) -> None:
        """Close the tickets of comparisons that have ended, by this event, which is in the history, or others there.

        Their pairs need no more labels.
        """
        if event.stage in RUNNING or event.cycle_id is None:
            return
        async with transaction(self._engine) as connection:
            for cycle_id, ended_at in (await _ended(connection, {event.cycle_id})).items():
                of_rollout = and_(REQUESTS.c.cycle_id == cycle_id, REQUESTS.c.asked_at <= ended_at)
                open_tickets = update(REQUESTS).where(_TICKET, REQUESTS.c.needed > 0, of_rollout)
                await connection.execute(open_tickets.values(needed=0))

    async def drop_before(self, task: str, before: datetime) -> None:
        """Delete the questions about predictions made before a moment, with their answers.

        Open tickets stay until their comparison ends: to the deployer one that is gone would be a loss for ever.
        """
        async with transaction(self._engine) as connection:
            old = and_(REQUESTS.c.task == task, REQUESTS.c.happened_at < before)
            await connection.execute(delete(REQUESTS).where(old, ~and_(_TICKET, REQUESTS.c.needed > 0)))

    def _is_for(self, reviewer: str) -> ColumnElement[bool]:
        answered = exists().where(ANSWERS.c.request_id == REQUESTS.c.request_id, ANSWERS.c.reviewer == reviewer)
        return and_(~answered, ~_left_to_others(reviewer, self._returns_after))

    async def _questions(self, query: Select[Any], limit: int) -> list[LabelRequested]:
        async with transaction(self._engine) as connection:
            rows = await connection.execute(query.limit(limit))
            return [LabelRequested.model_validate_json(row.request) for row in rows]


def _open(task: str, spec: TaskSpec | None) -> Select[Any]:
    return select(REQUESTS.c.request).where(_is_open(task, spec))


def _is_open(task: str, spec: TaskSpec | None) -> ColumnElement[bool]:
    """True of an open question that is of use for the task as it is now (None: of all).

    Pairs are of candidates of one revision. What the right answer is does not depend on the prompt or the list of
    labels, so all other questions stay open, unless one is for a label and the other for a free text.
    """
    is_open = (REQUESTS.c.task == task) & (REQUESTS.c.needed > 0)
    if spec is None:
        return is_open
    of_its_kind = ~_TICKET & (REQUESTS.c.asks_label == bool(spec.choices))
    return is_open & ((REQUESTS.c.task_revision == spec.revision) | of_its_kind)


def _left_to_others(reviewer: str, returns_after: timedelta) -> ColumnElement[bool]:
    """Select the cases that the reviewer skipped, could not tell or is not blind to, while they are for others.

    They are for this long, and as long as somebody else is there, who answered or skipped questions of the task within
    this time and may answer this one. Where nobody is, a case would wait for ever: it comes back to the reviewer.
    """
    since = func.now() - returns_after
    other = _DEEDS.subquery("other")
    somebody_else = select(other.c.case_id).where(
        other.c.task == REQUESTS.c.task, other.c.reviewer != reviewer, other.c.at > since,
        ~_has_left(other.c.reviewer, other), ~_asked_before(other.c.reviewer, other),
    )  # fmt: skip
    lately = _has_left(reviewer, since=since)
    return and_(_has_left(reviewer), or_(lately, somebody_else.correlate(REQUESTS).exists()))


def _has_left(
    reviewer: str | ColumnElement[str], *outer: FromClause, since: ColumnElement[datetime] | None = None
) -> ColumnElement[bool]:
    """Select the cases that a reviewer has dealt with, and the pairs of texts about whose prediction they have.

    Any other question about a prediction shows production's answer, so that the pair would not be blind to them.
    """
    deeds = _DEEDS.subquery()
    theirs = (deeds.c.reviewer == reviewer, true() if since is None else deeds.c.at > since)
    prediction = (deeds.c.task == REQUESTS.c.task, deeds.c.prediction_id == REQUESTS.c.prediction_id)
    of_case = exists().where(deeds.c.case_id == REQUESTS.c.case_id, *theirs).correlate(REQUESTS, *outer)
    of_prediction = exists().where(*prediction, *theirs).correlate(REQUESTS, *outer)
    return or_(of_case, and_(_TICKET, ~REQUESTS.c.asks_label, of_prediction))


def _asked_before(reviewer: str | ColumnElement[str], *outer: FromClause) -> ColumnElement[bool]:
    """Select tie-breaks on predictions that the reviewer has answered a question about."""
    earlier = REQUESTS.alias("earlier")
    answered = exists().where(
        earlier.c.prediction_id == REQUESTS.c.prediction_id,
        earlier.c.task == REQUESTS.c.task,
        ANSWERS.c.request_id == earlier.c.request_id,
        ANSWERS.c.reviewer == reviewer,
    )
    return and_(REQUESTS.c.purpose == Purpose.TIE_BREAK.value, answered.correlate(REQUESTS, *outer))


async def _lock(connection: AsyncConnection, request_id: str) -> bool:
    """Keep a question from being erased until the transaction ends. Returns False if there is no such question."""
    stored = select(REQUESTS.c.request_id).where(REQUESTS.c.request_id == request_id)
    return await connection.scalar(stored.with_for_update(read=True, key_share=True)) is not None


def _row(request: LabelRequested) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "task": request.task,
        "task_revision": request.task_revision,
        "purpose": request.purpose.value,
        "priority": request.priority,
        "needed": request.overlap,
        "prediction_id": request.prediction_id,
        "case_id": _case_of(request),
        "cycle_id": request.cycle_id,
        "happened_at": request.happened_at,
        "asked_at": request.occurred_at,
        "asks_label": bool(request.labels),
        **_people_and_text(request),
    }


def _case_of(request: LabelRequested) -> str:
    return request.ticket_id or request.request_id


def _people_and_text(request: LabelRequested) -> dict[str, Any]:
    """Return the columns that change with a question's suggestion: the event, and whom it names."""
    people = {"user_hash": request.user_hash, "suggested_by": request.suggested_by}
    return {**people, "request": request.model_dump_json()}


def _of(request_id: str) -> Update:
    return update(REQUESTS).where(REQUESTS.c.request_id == request_id)


async def _suggest(connection: AsyncConnection, request: LabelRequested) -> None:
    """Give a stored question what a user wrote since it was asked. An audit stays blind. A question of a sample stays
    as urgent as the others: those that people get through must be a random part of it.

    One with an answer in words keeps the suggestion that was shown, and one that is answered in words that of its first
    author: a page may show it, and whoever wrote it may be forgotten.
    """
    stored = select(REQUESTS.c.request).where(REQUESTS.c.request_id == request.request_id).with_for_update()
    if (text := (await connection.execute(stored)).scalar_one_or_none()) is None:
        return
    question = LabelRequested.model_validate_json(text)
    given = select(ANSWERS.c.label).where(ANSWERS.c.request_id == request.request_id)
    if any(may_be_taken(question, label) for label in await connection.scalars(given)):
        return
    if question.purpose is not Purpose.AUDIT and question.suggestion != request.suggestion:
        suggested = with_suggestion(question, request)
        if question.suggestion and not question.labels and suggested.suggested_by != question.suggested_by:
            return
        await connection.execute(_of(request.request_id).values(**_people_and_text(suggested)))


def _given(row: Any) -> GivenAnswer:
    answer = ReviewAnswer(row.label, row.preference, row.seconds)
    return GivenAnswer(answer, row.edits, row.answered_at, tuple(row.surrogates))


def _is_of(ended: Mapping[str | None, datetime], request: LabelRequested) -> bool:
    """Return True for a ticket of a rollout that has `ended` since it was asked."""
    return (
        request.ticket_id is not None and request.cycle_id in ended and request.occurred_at <= ended[request.cycle_id]
    )


def _cycles(requests: Iterable[LabelRequested]) -> set[str]:
    """Return the cycles that the tickets among these are of."""
    return {r.cycle_id for r in requests if r.ticket_id is not None and r.cycle_id is not None}


async def _ended(connection: AsyncConnection, cycles: Collection[str]) -> dict[str | None, datetime]:
    """Return when the comparisons of these cycles ended: questions and rollouts arrive on different topics."""
    if not cycles:
        return {}
    event = EVENTS.c.event
    query = (
        select(EVENTS.c.cycle_id, EVENTS.c.occurred_at, *(event[n].astext.label(n) for n in ("rollout_id", "stage")))
        .add_columns(func.coalesce(event["control"].astext, "false").label("control"))
        .add_columns(cast(event["promoted_at"].astext, DateTime(timezone=True)).label("promoted_at"))
        .where(EVENTS.c.cycle_id.in_(sorted(cycles)), EVENTS.c.topic == _ROLLOUTS)
        .where(event["stage"].astext.not_in([stage.value for stage in RUNNING]))
    )
    changes: dict[str, list[RolloutState]] = defaultdict(list)
    for row in await connection.execute(query):
        control = row.control == "true"
        change = RolloutState(row.rollout_id, Stage(row.stage), control, row.occurred_at, row.promoted_at)
        changes[row.cycle_id].append(change)
    ends = {cycle_id: comparisons_ended(of_cycle) for cycle_id, of_cycle in changes.items()}
    return {cycle_id: at for cycle_id, at in ends.items() if at is not None}
