"""Reads what reviewers said from `corrections.submitted`, without people who were erased since."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TypeVar

from aiokafka import TopicPartition

from schemas.base import Event
from schemas.catalog import topic_of
from schemas.labels import CorrectionSubmitted
from schemas.predictions import SubjectForgotten
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.clients import describe_topics, end_offsets, open_consumer
from shared.kafka.delivery import decode_event
from shared.privacy.erasure import ErasedSubjects
from shared.settings import Settings

E = TypeVar("E", bound=Event)
_READ_SECONDS = 30.0


async def read_corrections(settings: Settings, task: str) -> list[CorrectionSubmitted]:
    """Return a task's corrections, oldest first. Raises DependencyUnavailable while the broker is away."""
    forgotten = [event async for event in read_topic(settings, SubjectForgotten) if event.task == task]
    corrections = [event async for event in read_topic(settings, CorrectionSubmitted) if event.task == task]
    return without_erased(sorted(corrections, key=lambda c: (c.occurred_at, c.correction_id)), forgotten)


def without_erased(
    corrections: Iterable[CorrectionSubmitted], forgotten: Iterable[SubjectForgotten]
) -> list[CorrectionSubmitted]:
    """Leave out what was asked by people before they were erased: the topic still has it."""
    by_time = sorted(forgotten, key=lambda event: event.occurred_at)
    erased = ErasedSubjects({(event.task, event.subject_hash): event.occurred_at for event in by_time})
    return [
        c for c in corrections
        if not any(erased.covers(c.task, person, c.happened_at) for person in (c.user_hash, c.suggested_by))
    ]  # fmt: skip


def agreed_labels(
    corrections: Iterable[CorrectionSubmitted], reviewers: int
) -> dict[str, Sequence[CorrectionSubmitted]]:
    """Return, by prediction, the corrections of those who agree: `reviewers` at least, and more than half of all.

    Each reviewer's last label counts, unless they took it back: "cannot tell" about the same pair.
    """
    last: dict[str, dict[str, CorrectionSubmitted]] = {}
    for correction in corrections:
        by_reviewer = last.setdefault(correction.prediction_id, {})
        if correction.label is not None:
            by_reviewer[correction.reviewer] = correction
        elif (before := by_reviewer.get(correction.reviewer)) and before.request_id == correction.request_id:
            del by_reviewer[correction.reviewer]
    agreed: dict[str, Sequence[CorrectionSubmitted]] = {}
    for prediction_id, by_reviewer in sorted(last.items()):
        votes = list(by_reviewer.values())
        if not votes:
            continue
        label, count = Counter((vote.label or "").strip() for vote in votes).most_common(1)[0]
        if count >= reviewers and 2 * count > len(votes):
            agreed[prediction_id] = [vote for vote in votes if (vote.label or "").strip() == label]
    return agreed


async def read_topic(settings: Settings, event: type[E]) -> AsyncIterator[E]:
    """Yield all events of a topic up to its end now; those that cannot be read are left out.

    Raises DependencyUnavailable while the broker is away.
    """
    name = topic_of(event).name
    described = (await describe_topics(settings, [name])).get(name)
    partitions = [TopicPartition(name, number) for number in described.partitions] if described else []
    if not partitions:
        return
    ends = await end_offsets(settings, partitions)
    silent_since = time.monotonic()
    async with open_consumer(settings, group_id=None, auto_offset_reset="earliest") as consumer:
        consumer.assign(partitions)
        while unread := [part for part in partitions if await consumer.position(part) < ends[part]]:
            batches = await consumer.getmany(*unread, timeout_ms=1_000)
            if batches:
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > _READ_SECONDS:
                raise DependencyUnavailable(f"Kafka did not return {name} up to its end", "Try again")
            for record in (record for records in batches.values() for record in records):
                try:
                    yield decode_event(event, record.value or b"")
                except InvalidMessage:
                    continue
