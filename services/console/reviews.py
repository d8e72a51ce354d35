"""What people do: take a question, answer it. The API and the pages both use it."""

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
    """There is no such task or question."""


@dataclass(frozen=True)
class Receipt:
    """`counted` is false for an answer that came when the question had enough: it was not published."""

    correction_id: str
    counted: bool


class Reviews:
    def __init__(
        self,
        queue: Queue,
        publisher: EventPublisher,
        tasks: LatestByKey[TaskChanged],
        typed: AnswerRedactor,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._queue = queue
        self._publisher = publisher
        self._tasks = tasks
        self._typed = typed
        self._now = now
        self._turns = [asyncio.Lock() for _ in range(64)]

    async def questions(
        self,
        task: str,
        reviewer: str,
        limit: int,
        purpose: Purpose | None = None,
        skipped: Collection[str] = (),
    ) -> list[LabelRequested]:
        """Questions for this reviewer, tickets and others in turn. Raises UnknownError, InvalidMessage."""
        reviewer = check_reviewer(reviewer)
        revision = await self._revision(task)
        tickets: list[LabelRequested] = []
        others: list[LabelRequested] = []
        if purpose in (None, Purpose.DISCORDANT_PAIR):
            tickets = await self._queue.tickets(task, revision, reviewer, limit, skipped)
        if purpose is not Purpose.DISCORDANT_PAIR:
            others = await self._queue.other_questions(task, revision, reviewer, limit, purpose, skipped)
        return interleave(tickets, others, limit)

    async def count(self, task: str) -> dict[str, int]:
        """Open questions by purpose. Raises UnknownError."""
        return await self._queue.open_by_purpose(task, await self._revision(task))

    async def answer(self, request_id: str, reviewer: str, answer: ReviewAnswer) -> Receipt:
        """Publish an answer, then note it: a crash between the two makes a retry publish the same fact again.

        Raises UnknownError for the question, InvalidMessage for the answer, DependencyUnavailable.
        """
        reviewer = check_reviewer(reviewer)
        async with self._turns[hash(request_id) % len(self._turns)]:  # Two reviewers at once: one of them is late.
            if (found := await self._queue.request(request_id)) is None:
                raise UnknownError(f"no question {request_id!r}")
            request, needed = found
            check_answer(request, answer)
            name = correction_id(request_id, reviewer)
            if await self._queue.answered(request_id, reviewer):
                return Receipt(name, counted=True)
            if needed == 0:
                return Receipt(name, counted=False)
            answer, redactions = await self._typed.clean(request, answer, self._tasks.get(request.task))
            check_answer(request, answer)  # A made-up name may be longer.
            now = self._now()
            await self._publisher.publish(correction_of(request, reviewer, answer, redactions, now))
            await self._queue.record(request_id, reviewer, answer, now)
            return Receipt(name, counted=True)

    async def is_gone(self, request_id: str) -> bool:
        """Whether a question is not there any more: its person was forgotten, and no page may go on showing it."""
        return await self._queue.request(request_id) is None

    async def _revision(self, task: str) -> str | None:
        """The task's revision now; None: the task is not on its topic (yet), but was asked about before."""
        if (changed := self._tasks.get(task)) is not None:
            return changed.task_revision
        if not await self._queue.has_requests(task):
            raise self._no_task(task)
        return None

    def _no_task(self, task: str) -> UnknownError:
        known = ", ".join(sorted(changed.task for changed in self._tasks)) or "none yet"
        return UnknownError(f"no task {task!r}; tasks: {known}")
