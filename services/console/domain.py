"""The review queue's rules. Pure.

Reviewers are blind: what they are shown says what was asked and what was answered, never by whom.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any, Literal, TypeVar

from schemas.base import MAX_TEXT
from schemas.labels import CorrectionSubmitted, LabelRequested
from schemas.rollouts import Stage
from shared.errors import InvalidMessage
from shared.identity import content_hash, event_id

Preference = Literal["a", "b", "both_right", "both_wrong", "cannot_tell"]
KEYS = tuple("1234567890") + tuple(string.ascii_lowercase)
MAX_REVIEWER = 100
RUNNING = (Stage.SHADOW, Stage.CANARY)
"""Stages in which a candidate's answers are compared with production's."""
LISTED = 20
"""Allowed labels that an error message lists."""

T = TypeVar("T")


@dataclass(frozen=True)
class ReviewAnswer:
    """What a reviewer said: a label or, for a pair without labels, a preference."""

    label: str | None = None
    preference: Preference | None = None
    seconds: float | None = None


def interleave(tickets: Sequence[T], others: Sequence[T], limit: int) -> list[T]:
    """One ticket, one other, in turn: neither the proof nor the training data starves. Each keeps its own order."""
    nothing: list[T] = []
    pairs = zip_longest(([t] for t in tickets), ([o] for o in others), fillvalue=nothing)
    return [item for one, other in pairs for item in (*one, *other)][:limit]


def keys_for(labels: Iterable[str]) -> dict[str, str]:
    """Key to label, as far as keys go: 1 to 9, 0, then a to z."""
    return dict(zip(KEYS, labels, strict=False))


def asks_preference(request: LabelRequested) -> bool:
    """A pair of free texts is compared; everything else is asked for its true answer."""
    return not request.labels and len(request.answers) == 2


def shown(request: LabelRequested) -> dict[str, Any]:
    """What a reviewer may see of a question."""
    fields = {"request_id", "prediction_id", "purpose", "messages", "answers", "labels", "overlap"}
    return request.model_dump(mode="json", include=fields)


def check_reviewer(reviewer: str) -> str:
    """The reviewer's name, trimmed. Raises InvalidMessage if it is none."""
    name = reviewer.strip()
    if not name or len(name) > MAX_REVIEWER or not name.isprintable():
        raise InvalidMessage(f"reviewer: give a name of 1 to {MAX_REVIEWER} printable characters")
    return name


def check_answer(request: LabelRequested, answer: ReviewAnswer) -> None:
    """Raises InvalidMessage, with what is allowed, for an answer that does not fit its question."""
    if (answer.label is None) == (answer.preference is None):
        raise InvalidMessage("give exactly one of label and preference")
    if asks_preference(request):
        if answer.preference is None:
            raise InvalidMessage("label: this question asks which answer is better", "Give preference instead.")
    elif answer.label is None:
        raise InvalidMessage("preference: this question asks for the true answer", "Give label instead.")
    elif len(answer.label) > MAX_TEXT:
        raise InvalidMessage(f"label: found {len(answer.label):,} characters, expected at most {MAX_TEXT:,}")
    elif not answer.label.strip() or "\x00" in answer.label:
        raise InvalidMessage("label: found no text, or a NUL character")
    elif request.labels and answer.label not in request.labels:
        more = f" and {len(request.labels) - LISTED} more" if len(request.labels) > LISTED else ""
        allowed = ", ".join(repr(label) for label in request.labels[:LISTED]) + more
        raise InvalidMessage(f"label: found {answer.label[:120]!r}, expected one of {allowed}")


def correction_of(
    request: LabelRequested, reviewer: str, answer: ReviewAnswer, redactions: int, now: datetime
) -> CorrectionSubmitted:
    """The event of an answer. Its ids follow from question and reviewer: a retry is the same fact."""
    return CorrectionSubmitted(
        event_id=event_id("correction", request.request_id, reviewer),
        occurred_at=now,
        task=request.task,
        task_revision=request.task_revision,
        cycle_id=request.cycle_id,
        correction_id=correction_id(request.request_id, reviewer),
        request_id=request.request_id,
        prediction_id=request.prediction_id,
        purpose=request.purpose,
        reviewer=reviewer,
        messages=request.messages,
        answers=request.answers,
        label=answer.label,
        preference=answer.preference,
        inclusion_probability=request.inclusion_probability,
        overlap=request.overlap,
        ticket_id=request.ticket_id,
        user_hash=request.user_hash,
        predicted_at=request.predicted_at,
        redactions=redactions,
        seconds=answer.seconds,
    )


def correction_id(request_id: str, reviewer: str) -> str:
    """The name of what this reviewer answers to this question."""
    return f"correction-{content_hash(request_id, reviewer, length=20)}"
