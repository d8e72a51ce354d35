"""The use cases of reviewing: get questions, answer or skip one. The API and the pages call them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from schemas.base import utc_now
from schemas.labels import LabelRequested, Purpose
from schemas.tasks import TaskChanged, TaskSpec
from services.console.domain import (
    AnsweredQuestion,
    ReviewAnswer,
    ReviewerCounts,
    as_of_today,
    asks_preference,
    check_answer,
    check_reviewer,
    correction_id,
    correction_of,
    interleave,
    next_answer,
)
from services.console.open_pages import OpenPages
from services.console.redaction import AnswerRedactor
from services.console.storage import PostgresQueue
from shared.answers import InvalidAnswer, answer_form
from shared.errors import InvalidMessage, RatchetError
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher

_TASKS_SECONDS = 2.0
"""How long an answer waits for the tasks to be read, which after a start takes a moment."""


class UnknownError(RatchetError):
    """The task or question does not exist."""


@dataclass(frozen=True)
class Receipt:
    """Confirms an answer. Not `counted`: the question had enough answers, so it is not published and has no id."""

    correction_id: str | None
    counted: bool


class Reviews:
    def __init__(
        self,
        queue: PostgresQueue,
        publisher: Publisher,
        tasks: LatestByKey[TaskChanged],
        redactor: AnswerRedactor,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._queue = queue
        self._publisher = publisher
        self._tasks = tasks
        self._redactor = redactor
        self._now = now
        self._locks = [asyncio.Lock() for _ in range(64)]
        self._pages = OpenPages()

    async def questions(
        self,
        task: str,
        reviewer: str,
        limit: int,
        purpose: Purpose | None = None,
    ) -> list[LabelRequested]:
        """Return questions for this reviewer, tickets alternating with others. Raises UnknownError, InvalidMessage.

        What they skipped or could not tell is for others (`PostgresQueue`).
        """
        reviewer = check_reviewer(reviewer)
        spec = await self._spec(task)
        tickets: list[LabelRequested] = []
        questions: list[LabelRequested] = []
        if purpose in (None, Purpose.DISCORDANT_PAIR):
            tickets = await self._queue.tickets(task, spec, reviewer, limit)
        if purpose is not Purpose.DISCORDANT_PAIR:
            questions = await self._queue.other_questions(task, spec, reviewer, limit, purpose)
        found = interleave(tickets, questions, limit)
        return found if spec is None else [as_of_today(question, spec) for question in found]

    async def questions_of_page(self, page: object, task: str, reviewer: str) -> list[LabelRequested]:
        """Return questions for an open page, which are on no other page where there are such.

        Tickets and other questions, if there are both. Call `show` for one of them at once. Raises as `questions` does.
        """
        others = len(self._pages.elsewhere(page, self._now()))
        found = await self.questions(task, reviewer, 2 * (1 + others))
        elsewhere = self._pages.elsewhere(page, self._now())
        return [question for question in found if question.request_id not in elsewhere] or found

    def show(self, page: object, question: LabelRequested | None) -> None:
        """Note which open question a page shows now; None: none, or it was closed."""
        if question is None:
            self._pages.leave(page)
        else:
            self._pages.show(page, question.request_id, self._now())

    async def count(self, task: str) -> dict[str, int]:
        """Count the open questions by purpose. Raises UnknownError."""
        return (await self._queue.open_by_purpose({task: await self._spec(task)}))[task]

    async def counts(self) -> dict[str, dict[str, int]]:
        """Count the open questions of each task that is known, by purpose."""
        return await self._queue.open_by_purpose({changed.task: changed.spec for changed in self._tasks})

    async def reviewers(self, task: str) -> list[ReviewerCounts]:
        """Return what each reviewer of the task answered, could not tell and skipped. Raises UnknownError."""
        await self._spec(task)
        return await self._queue.reviewers(task)

    async def skip(self, request_id: str, reviewer: str) -> None:
        """Leave a question to others. Raises UnknownError for the question, InvalidMessage, DependencyUnavailable."""
        if not await self._queue.skip(request_id, check_reviewer(reviewer), self._now()):
            raise UnknownError(f"no question {request_id!r}")

    async def answer(self, request_id: str, reviewer: str, answer: ReviewAnswer) -> Receipt:
        """Publish an answer, then record it: after a crash in between, a retry publishes the same event again.

        Another answer than the reviewer's last one to the question takes its place, by an event of its own. The same
        one again changes nothing. Raises UnknownError for the question, InvalidMessage for the answer,
        DependencyUnavailable.
        """
        reviewer = check_reviewer(reviewer)
        async with self._locks[hash(request_id) % len(self._locks)]:  # Of two reviewers at once, one is late.
            if (found := await self._queue.request(request_id)) is None:
                raise UnknownError(f"no question {request_id!r}")
            request, needed = found
            # Before all tasks are read, this one's labels may be of yesterday, and what it redacts unknown.
            if (task := await self._tasks.latest(request.task, _TASKS_SECONDS)) is not None:
                request = as_of_today(request, task.spec)
            spec = None if task is None else task.spec
            check_answer(request, answer)
            answer = _in_one_spelling(answer, spec)
            before = await self._queue.given(request_id, reviewer)
            if before is None and needed == 0:
                return Receipt(None, counted=False)
            earlier = before.surrogates if before is not None else ()
            answer, redacted = await self._redactor.redact(request, answer, task, earlier)
            check_answer(request, answer)  # A surrogate may be longer than the name it replaces,
            answer = _in_one_spelling(answer, spec)  # or be none of what a pattern of the schema allows.
            if before is not None and before.says(answer):
                return Receipt(correction_id(request_id, reviewer, before), counted=True)
            if (
                before is not None
                and asks_preference(request)
                and await self._queue.has_had_another(request, reviewer, before.at)
            ):
                raise InvalidMessage(
                    "you have had another question about this prediction since, which shows whose answer is whose",
                    "Leave your answer as it is.",
                )
            given = next_answer(request, answer, redacted, before, self._now())
            await self._publisher.publish(correction_of(request, reviewer, given, redacted.count, spec))
            if not await self._queue.record(request_id, reviewer, given):
                # Its person was erased meanwhile; whoever reads the event drops it, too.
                raise UnknownError(f"no question {request_id!r}")
            return Receipt(correction_id(request_id, reviewer, given), counted=True)

    async def answers(
        self, task: str, reviewer: str, limit: int, before: datetime | None = None
    ) -> list[AnsweredQuestion]:
        """Return what this reviewer answered, the last first; with `before`, what they had answered before then.

        Raises UnknownError for the task, InvalidMessage for the reviewer, DependencyUnavailable.
        """
        reviewer = check_reviewer(reviewer)
        spec = await self._spec(task)
        found = await self._queue.answers(task, reviewer, limit, before)
        return found if spec is None else [replace(a, request=as_of_today(a.request, spec)) for a in found]

    def spec_of(self, task: str) -> TaskSpec | None:
        """Return the task as it is now, if it is known."""
        changed = self._tasks.get(task)
        return None if changed is None else changed.spec

    async def is_gone(self, request_id: str) -> bool:
        """Return True if a question was deleted, because its person was erased: no page may show it any longer."""
        return await self._queue.request(request_id) is None

    async def _spec(self, task: str) -> TaskSpec | None:
        """Return the task as it is now; None if it has questions but was not read from its topic yet."""
        if (changed := self._tasks.get(task)) is not None:
            return changed.spec
        if not await self._queue.has_requests(task):
            raise self._no_task(task)
        return None

    def _no_task(self, task: str) -> UnknownError:
        names = ", ".join(sorted(changed.task for changed in self._tasks)) or "none yet"
        return UnknownError(f"no task {task!r}; tasks: {names}")


def _in_one_spelling(answer: ReviewAnswer, spec: TaskSpec | None) -> ReviewAnswer:
    """A reviewer's answer in the spelling that is trained on. `spec` None: not known yet.

    One label was chosen from those of the question. Raises InvalidMessage for what is no answer of the task.
    """
    if answer.label is None or spec is None or spec.choices:
        return answer
    try:
        return replace(answer, label=answer_form(spec).canonical(answer.label))
    except InvalidAnswer as error:
        raise InvalidMessage(f"label: {error}") from error
