"""Reviewers: they answer the questions about tickets, some twice, some only that they cannot tell.

What they find follows from the ticket's id and the candidate's quality, so that a run can be repeated. They see what a
question shows; only `Kind` knows which of its sides is the candidate's.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime

from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.rollouts import ShadowCompared
from shared.identity import event_id
from tests.chaos.rollouts.tasks import LABELS, MIN_TICKETS, QUALITIES, Kind
from tests.chaos.rollouts.topics import PatientPublisher

_CANNOT_TELL, _EDITED = 0.04, 0.04
_SECONDS = (0.0, 2.0)
"""How long a person takes."""


class People:
    """`answered`: tickets with an answer, by rollout."""

    def __init__(self, kinds: Mapping[str, Kind], publisher: PatientPublisher) -> None:
        self._kinds = kinds
        self._publisher = publisher
        self._pairs: dict[tuple[str, str], ShadowCompared] = {}
        self._held: dict[str, list[LabelRequested]] = defaultdict(list)
        self._open: set[str] = set()
        self._early: dict[tuple[str, str], list[LabelRequested]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()
        self.answered: defaultdict[str, set[str]] = defaultdict(set)

    async def on_compared(self, event: ShadowCompared) -> None:
        key = event.task, event.prediction_id
        self._pairs[key] = event
        for question in self._early.pop(key, []):
            await self.on_requested(question)

    async def on_requested(self, event: LabelRequested) -> None:
        """Answer it, once as many tickets of its rollout are asked as every rollout of a run has."""
        if event.purpose is not Purpose.DISCORDANT_PAIR:
            return
        pair = self._pairs.get((event.task, event.prediction_id))
        if pair is None:
            self._early[event.task, event.prediction_id].append(event)
            return
        rollout = pair.rollout_id
        self._held[rollout].append(event)
        if rollout not in self._open and len({question.ticket_id for question in self._held[rollout]}) < MIN_TICKETS:
            return
        self._open.add(rollout)
        for question in self._held.pop(rollout, []):
            self._start(question, pair.candidate_adapter)

    def _start(self, question: LabelRequested, candidate: str) -> None:
        task = asyncio.create_task(self._answer(question, candidate))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, question: LabelRequested, candidate: str) -> None:
        rng = random.Random(question.request_id)
        pair = self._pairs[question.task, question.prediction_id]
        await asyncio.sleep(rng.uniform(*_SECONDS))
        is_first = question.request_id == question.ticket_id
        if rng.random() < _CANNOT_TELL:
            await self._submit(question, "ann" if is_first else "bob", None)
            return
        right = _right_label(pair, self._kinds[candidate], str(question.ticket_id))
        if rng.random() < _EDITED:
            await self._submit(question, "cat", rng.choice(LABELS))
            await asyncio.sleep(rng.uniform(*_SECONDS))
        await self._submit(question, "cat", right)
        self.answered[pair.rollout_id].add(str(question.ticket_id))

    async def _submit(self, question: LabelRequested, reviewer: str, label: str | None) -> None:
        now = datetime.now(UTC)
        correction_id = f"correction-{question.request_id}-{reviewer}-{now.timestamp()}"
        await self._publisher.publish("console", CorrectionSubmitted(
            event_id=event_id("chaos", correction_id), occurred_at=now, task=question.task,
            task_revision=question.task_revision, cycle_id=question.cycle_id, correction_id=correction_id,
            request_id=question.request_id, prediction_id=question.prediction_id, purpose=question.purpose,
            reviewer=reviewer, call=question.call, answers=question.answers, label=label,
            preference="cannot_tell" if label is None else None, ticket_id=question.ticket_id,
            user_hash=question.user_hash, predicted_at=question.predicted_at,
        ))  # fmt: skip


def _right_label(pair: ShadowCompared, kind: Kind, ticket: str) -> str:
    """Return the label that is right, by how good the candidate's kind is."""
    quality, drawn = QUALITIES[kind], random.Random(f"right {ticket}").random()
    production = pair.production_answer.plain
    candidate = pair.candidate_answer.plain if pair.candidate_answer is not None else ""
    if drawn < quality.better and candidate:
        return candidate
    if drawn < quality.better + quality.worse:
        return production
    return next(label for label in LABELS if label not in (production, candidate))
