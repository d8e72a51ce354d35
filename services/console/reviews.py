"""The use cases of reviewing: get questions, answer one. The API and the pages call them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from schemas.base import utc_now
from schemas.labels import LabelRequested, Purpose
from schemas.tasks import TaskChanged
from services.console.domain import ReviewAnswer, check_answer, check_reviewer, correction_id, correction_of, interleave
from services.console.redaction import AnswerRedactor
from services.console.storage import Queue
from shared.errors import RatchetError
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher


class UnknownError(RatchetError):
    """The task or question does not exist."""


@dataclass(frozen=True)
class Receipt:
    """Confirms an answer. `counted` is False if the question had enough answers: the answer is not published."""

    correction_id: str
    counted: bool


class Reviews:
    def __init__(
        self,
        queue: Queue,
        publisher: EventPublisher,
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

    async def questions(
        self,
        task: str,
        reviewer: str,
        limit: int,
        purpose: Purpose | None = None,
        skipped: Collection[str] = (),
    ) -> list[LabelRequested]:
        """Return questions for this reviewer, tickets alternating with others. Raises UnknownError, InvalidMessage."""
        reviewer = check_reviewer(reviewer)
        revision = await self._revision(task)
        tickets: list[LabelRequested] = []
        questions: list[LabelRequested] = []
        if purpose in (None, Purpose.DISCORDANT_PAIR):
            tickets = await self._queue.tickets(task, revision, reviewer, limit, skipped)
        if purpose is not Purpose.DISCORDANT_PAIR:
            questions = await self._queue.other_questions(task, revision, reviewer, limit, purpose, skipped)
        return interleave(tickets, questions, limit)

    async def count(self, task: str) -> dict[str, int]:
        """Count the open questions by purpose. Raises UnknownError."""
        return await self._queue.open_by_purpose(task, await self._revision(task))

    async def answer(self, request_id: str, reviewer: str, answer: ReviewAnswer) -> Receipt:
        """Publish an answer, then record it: after a crash in between, a retry publishes the same event again.

        Raises UnknownError for the question, InvalidMessage for the answer, DependencyUnavailable.
        """
        reviewer = check_reviewer(reviewer)
        async with self._locks[hash(request_id) % len(self._locks)]:  # Of two reviewers at once, one is late.
            if (found := await self._queue.request(request_id)) is None:
                raise UnknownError(f"no question {request_id!r}")
            request, needed = found
            check_answer(request, answer)
            correction = correction_id(request_id, reviewer)
            if await self._queue.answered(request_id, reviewer):
                return Receipt(correction, counted=True)
            if needed == 0:
                return Receipt(correction, counted=False)
            answer, redactions = await self._redactor.redact(request, answer, self._tasks.get(request.task))
            check_answer(request, answer)  # A surrogate may be longer than the name it replaces.
            now = self._now()
            await self._publisher.publish(correction_of(request, reviewer, answer, redactions, now))
            await self._queue.record(request_id, reviewer, answer, now)
            return Receipt(correction, counted=True)

    async def is_gone(self, request_id: str) -> bool:
        """Return True if a question was deleted, because its person was erased: no page may show it any longer."""
        return await self._queue.request(request_id) is None

    async def _revision(self, task: str) -> str | None:
        """Return the task's current revision; None if the task has questions but was not read from its topic yet."""
        if (changed := self._tasks.get(task)) is not None:
            return changed.task_revision
        if not await self._queue.has_requests(task):
            raise self._no_task(task)
        return None

    def _no_task(self, task: str) -> UnknownError:
        names = ", ".join(sorted(changed.task for changed in self._tasks)) or "none yet"
        return UnknownError(f"no task {task!r}; tasks: {names}")
