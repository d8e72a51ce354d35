"""Questions about predictions that people have labelled already. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from schemas.conversation import Answer
from schemas.labels import LabelRequested, Purpose
from schemas.tasks import TaskSpec
from services.dataset_builder.building.rows import Row
from shared.identity import event_id

if TYPE_CHECKING:
    from services.dataset_builder.building.votes import Vote

_THIRD_OPINION = 2.0
"""Its priority, above every question of a single doubt: two labels are paid for and wait for this one."""

_SECOND_OPINION = 1.9
"""Just under a third opinion."""


def within_budget(questions: Iterable[LabelRequested], spec: TaskSpec) -> tuple[LabelRequested, ...]:
    """Return those of a build's questions that people are asked: the most pressing, as many as a day's budget allows.

    Others wait for a later build. What nobody has answered is asked again, under the same id. The order makes no
    difference.
    """
    by_id = {question.request_id: question for question in questions}
    ranked = sorted(by_id.values(), key=lambda question: (-question.priority, question.request_id))
    return tuple(ranked[: spec.failures.review_budget_per_day])


def label_again(row: Row, label: str, spec: TaskSpec, priority: float, at: datetime) -> LabelRequested:
    """Return the question whether a label is right. A prediction with this label has one, whoever asks it."""
    request_id = str(event_id("suspicious label", row.prediction_id, label))
    return _question(row, spec, request_id, Purpose.SUSPICIOUS_LABEL, priority, at)


def second_opinion(row: Row, label: str, spec: TaskSpec, at: datetime) -> LabelRequested:
    """Return the question to somebody else than who gave a label, which is unlike what others give to such answers.

    It is a tie-break, which nobody is asked who has answered about the prediction: one's own word confirms nothing.
    """
    request_id = str(event_id("second opinion", row.prediction_id, label))
    return _question(row, spec, request_id, Purpose.TIE_BREAK, _SECOND_OPINION, at)


def tie_break(labelled: Vote | Row, reviewers: Collection[str], spec: TaskSpec, at: datetime) -> LabelRequested:
    """Return the question to one more person than these `reviewers`, who are all that have answered it.

    The same reviewers have the same question, whoever asks it. Once it is answered there is one more of them, so that
    no question has the id of an answered one, which would reach nobody.
    """
    request_id = str(event_id("tie-break", labelled.prediction_id, *sorted(reviewers)))
    return _question(labelled, spec, request_id, Purpose.TIE_BREAK, _THIRD_OPINION, at)


def _shown(answers: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Return the prediction's answer, which each of those who agree was shown, or the two of a pair, of which nobody
    can tell which one it is."""
    return tuple({answer.plain: answer for answer in reversed(answers)}.values())[::-1][:2]


def _question(
    labelled: Vote | Row, spec: TaskSpec, request_id: str, purpose: Purpose, priority: float, at: datetime
) -> LabelRequested:
    return LabelRequested(
        event_id=event_id("labels.requested", request_id),
        occurred_at=at,
        task=spec.name,
        task_revision=spec.revision,
        request_id=request_id,
        prediction_id=labelled.prediction_id,
        purpose=purpose,
        call=labelled.call,
        answers=_shown(labelled.answers) if spec.choices else labelled.answers[:1],
        labels=spec.choices,
        priority=priority,
        app=labelled.app,
        session_hash=labelled.session,
        user_hash=labelled.user_hash,
        predicted_at=labelled.predicted_at,
    )
