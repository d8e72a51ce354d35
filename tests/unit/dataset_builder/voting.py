"""Votes for tests: overlaps, audits, and rows of several voters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from services.dataset_builder.building.votes import Vote, votes_of

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
LABELS = ("a", "b", "c")


def correction(
    number: int, label: str, reviewer: str = "ana", *, answer: str = "a", minute: int = 0, **other: object
) -> CorrectionSubmitted:
    return CorrectionSubmitted.model_validate(
        {
            "occurred_at": NOON + timedelta(minutes=minute),
            "task": "t",
            "task_revision": "r1",
            "correction_id": f"c{number}-{reviewer}-{minute}",
            "request_id": f"r{number}",
            "prediction_id": f"p{number}",
            "purpose": Purpose.LOW_CONFIDENCE,
            "reviewer": reviewer,
            "call": Call(messages=(Message(role=Role.USER, content=f"question {number}"),)),
            "answers": (Answer(text=answer),),
            "label": label,
            **other,
        }
    )


def overlaps_of(count: int, *, agree: int, annotators: tuple[str, str] = ("ana", "ben")) -> tuple[Vote, ...]:
    """Questions that two people answer, of which they agree on the first ones. Labels take turns."""
    ann, ben = annotators
    corrections = []
    for number in range(count):
        label, other = LABELS[number % 3], LABELS[(number + 1) % 3]
        corrections.append(correction(number, label, ann, overlap=2))
        corrections.append(correction(number, label if number < agree else other, ben, overlap=2, minute=1))
    return tuple(votes_of(corrections))


def audits_of(counts: Mapping[str, int], probability: float = 0.1) -> tuple[Vote, ...]:
    """So many audits of each label."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return tuple(
        votes_of(
            correction(10_000 + n, label, purpose=Purpose.AUDIT, inclusion_probability=probability)
            for n, label in enumerate(labels)
        )
    )
