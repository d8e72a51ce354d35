"""The rules of the review queue. Pure.

Reviews are blind: reviewers are shown what was asked and what was answered, never by which model. Who was shown
production's answer by another question leaves the pair to others (`PostgresQueue`).
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any, TypeVar

from schemas.base import MAX_TEXT
from schemas.labels import CorrectionSubmitted, LabelRequested, Preference
from schemas.rollouts import Stage
from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.errors import InvalidMessage
from shared.identity import content_hash, event_id
from shared.privacy.erasure import ErasedSubjects
from shared.privacy.redaction import Redacted, listed_surrogates

KEYS = tuple("1234567890") + tuple(string.ascii_lowercase)
MAX_REVIEWER = 100
RUNNING = (Stage.SHADOW, Stage.CANARY)
"""Stages in which a candidate's answers are compared with production's."""
MAX_LISTED_LABELS = 20
"""Allowed labels that an error message lists."""

T = TypeVar("T")


@dataclass(frozen=True)
class ReviewAnswer:
    """A reviewer's answer: a label or, for a pair of free texts, a preference; "cannot_tell" for any ticket."""

    label: str | None = None
    preference: Preference | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class GivenAnswer:
    """A reviewer's newest answer to a question, after `edits` changes. `surrogates`: for personal data in its text."""

    answer: ReviewAnswer
    edits: int
    at: datetime
    surrogates: tuple[str, ...] = ()

    def says(self, answer: ReviewAnswer) -> bool:
        """Return True if it is the same answer. How long it took makes no difference."""
        return (self.answer.label, self.answer.preference) == (answer.label, answer.preference)


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with the reviewer's answer. `ended`: it is of a comparison that is over, so a change moves nothing."""

    request: LabelRequested
    given: GivenAnswer
    ended: bool


@dataclass(frozen=True)
class ReviewerCounts:
    """What a reviewer did with a task's questions that are stored. `answers`: those that are not "cannot tell"."""

    reviewer: str
    answers: int
    cannot_tell: int
    skipped: int


@dataclass(frozen=True)
class RolloutState:
    """What one event says of a rollout: see the fields of `RolloutChanged`."""

    rollout_id: str
    stage: Stage
    control: bool
    occurred_at: datetime
    promoted_at: datetime | None = None

    @property
    def closes_until(self) -> datetime:
        """Until when the tickets that it closes were asked: people are while a promotion that is decided waits, too."""
        if self.promoted_at is None:
            return self.occurred_at
        return self.promoted_at if self.control else max(self.occurred_at, self.promoted_at)


def comparisons_ended(changes: Iterable[RolloutState]) -> datetime | None:
    """Return when the last of a cycle's comparisons ended; None: none has. What was asked until then is closed.

    A promotion with a control ends the comparison that led to it and begins one of fresh pairs: of its events the first
    counts, since new evidence, and a person's word, repeat it.
    """
    ends: dict[tuple[str, bool], datetime] = {}
    for change in changes:
        if change.stage not in RUNNING:
            end, at = (change.rollout_id, change.control), change.closes_until
            ends[end] = (min if change.control else max)(at, ends.get(end, at))
    return max(ends.values(), default=None)


def interleave(tickets: Sequence[T], questions: Sequence[T], limit: int) -> list[T]:
    """Alternate tickets and other questions, each in its own order, so that neither has to wait for the other."""
    nothing: list[T] = []
    pairs = zip_longest(([ticket] for ticket in tickets), ([other] for other in questions), fillvalue=nothing)
    return [item for ticket, question in pairs for item in (*ticket, *question)][:limit]


def keys_for(labels: Iterable[str]) -> dict[str, str]:
    """Return key → label: 1 to 9, 0, then a to z. Labels beyond those have no key."""
    return dict(zip(KEYS, labels, strict=False))


def asks_preference(request: LabelRequested) -> bool:
    """Return True if the question is which of two free texts is better, not what the true answer is."""
    return not request.labels and len(request.answers) == 2


def takes_cannot_tell(request: LabelRequested) -> bool:
    """Return True if "cannot tell" is an answer: of a ticket it is evidence. Any other question is skipped instead."""
    return request.ticket_id is not None


def shown(request: LabelRequested) -> dict[str, Any]:
    """Return the fields of a question that a reviewer may see.

    Why an answer ended is not among them: of a pair, only the candidate's may have been cut.
    """
    fields = {"request_id", "prediction_id", "purpose", "call", "answers", "labels", "overlap", "suggestion"}
    return request.model_dump(mode="json", include=fields, exclude={"answers": {"__all__": {"finish_reason"}}})


def acceptable_suggestion(request: LabelRequested) -> str | None:
    """Return what the user wrote, if a reviewer may take it as it is: a text, or one of the labels."""
    if asks_preference(request) or (request.labels and request.suggestion not in request.labels):
        return None
    return request.suggestion


def without_suggestion(request: LabelRequested) -> LabelRequested:
    """Return a question without what a user wrote."""
    return request.model_copy(update={"suggestion": None, "suggestion_surrogates": (), "suggested_by": None})


def without_erased_suggestion(request: LabelRequested, erased: ErasedSubjects) -> LabelRequested:
    """Return a question without what somebody who was ever erased wrote: when they wrote it is not known."""
    return without_suggestion(request) if erased.includes(request.task, request.suggested_by) else request


def with_suggestion(question: LabelRequested, newer: LabelRequested) -> LabelRequested:
    """Return a stored question with what a user wrote since it was asked, and who did: its user, or somebody else."""
    whose = question.user_hash or newer.user_hash  # Where only the feedback named the user.
    author = newer.suggested_by or newer.user_hash
    wrote = {"suggestion": newer.suggestion, "suggestion_surrogates": newer.suggestion_surrogates}
    by_another = None if author == whose else author
    return question.model_copy(update={**wrote, "user_hash": whose, "suggested_by": by_another})


def as_of_today(request: LabelRequested, spec: TaskSpec) -> LabelRequested:
    """Return a question of an earlier revision with the labels that the task has now, by their names of today.

    Its answer keeps that revision, so that whoever reads it knows what the model had been asked.
    """
    if request.task_revision == spec.revision or request.ticket_id is not None or not request.labels:
        return request
    suggestion = request.suggestion
    renamed = None if suggestion is None else spec.renamed_labels.get(suggestion, suggestion)
    return request.model_copy(update={"labels": spec.choices, "suggestion": renamed})


def check_reviewer(reviewer: str) -> str:
    """Return the reviewer's name, in small letters, single spaces and Unicode's composed form.

    One name is one person, however it was typed: as two they could answer a question twice, and agree with themselves.
    Raises InvalidMessage if it is not a valid name.
    """
    typed = reviewer.strip()
    name = unicodedata.normalize("NFC", " ".join(typed.split()).casefold())
    if not name or len(name) > MAX_REVIEWER or not typed.isprintable():
        raise InvalidMessage(f"reviewer: give a name of 1 to {MAX_REVIEWER} printable characters")
    return name


def check_answer(request: LabelRequested, answer: ReviewAnswer) -> None:
    """Raise InvalidMessage, with the allowed answers, if an answer does not fit its question."""
    if (answer.label is None) == (answer.preference is None):
        raise InvalidMessage("give exactly one of label and preference")
    if asks_preference(request):
        if answer.preference is None:
            raise InvalidMessage("label: this question asks which answer is better", "Give preference instead.")
    elif answer.preference == "cannot_tell" and takes_cannot_tell(request):
        return
    elif answer.label is None:
        others = ", or the preference cannot_tell" if takes_cannot_tell(request) else ""
        raise InvalidMessage("preference: this question asks for the true answer", f"Give label instead{others}.")
    elif len(answer.label) > MAX_TEXT:
        raise InvalidMessage(f"label: found {len(answer.label):,} characters, expected at most {MAX_TEXT:,}")
    elif not answer.label.strip() or "\x00" in answer.label:
        raise InvalidMessage("label: found no text, or a NUL character")
    elif request.labels and answer.label not in request.labels:
        omitted = len(request.labels) - MAX_LISTED_LABELS
        more = f" and {omitted} more" if omitted > 0 else ""
        allowed = ", ".join(repr(label) for label in request.labels[:MAX_LISTED_LABELS]) + more
        raise InvalidMessage(f"label: found {answer.label[:120]!r}, expected one of {allowed}")


def next_answer(
    request: LabelRequested, answer: ReviewAnswer, redacted: Redacted, before: GivenAnswer | None, now: datetime
) -> GivenAnswer:
    """Return the answer, whose text was `redacted`, as it takes the place of the reviewer's answer `before`.

    It is later than that one even where the clock went back: consumers keep a person's newest answer.
    """
    earlier = (*request.suggestion_surrogates, *(before.surrogates if before is not None else ()))
    copied = {surrogate for surrogate in earlier if surrogate in (answer.label or "")}
    surrogates = listed_surrogates({*redacted.surrogates, *copied})
    if before is None:
        return GivenAnswer(answer, 0, now, surrogates)
    return GivenAnswer(answer, before.edits + 1, max(now, before.at + timedelta(microseconds=1)), surrogates)


def may_be_taken(request: LabelRequested, label: str | None) -> bool:
    """Return True if an answer may be what a user wrote: it is in words, and none that the model gave."""
    if label is None or request.labels:
        return False
    return all(answer.plain.strip() != label.strip() for answer in request.answers)


def correction_of(
    request: LabelRequested, reviewer: str, given: GivenAnswer, redactions: int, spec: TaskSpec | None = None
) -> CorrectionSubmitted:
    """Return the event of an answer. Its ids derive from what it says, so a retry is the same event.

    `spec`: the task's, whose labels are nobody's words, also several of them.
    """
    label = given.answer.label
    is_labels = spec is not None and label is not None and answer_form(spec).labels(label) is not None
    correction = correction_id(request.request_id, reviewer, given)
    return CorrectionSubmitted(
        event_id=event_id("correction", correction),
        occurred_at=given.at,
        task=request.task,
        task_revision=request.task_revision,
        cycle_id=request.cycle_id,
        correction_id=correction,
        request_id=request.request_id,
        prediction_id=request.prediction_id,
        purpose=request.purpose,
        reviewer=reviewer,
        call=request.call,
        answers=request.answers,
        label=given.answer.label,
        preference=given.answer.preference,
        inclusion_probability=request.inclusion_probability,
        drawn_probability=request.drawn_probability,
        overlap=request.overlap,
        app=request.app,
        ticket_id=request.ticket_id,
        session_hash=request.session_hash,
        user_hash=request.user_hash,
        suggested_by=request.suggested_by if may_be_taken(request, label) and not is_labels else None,
        predicted_at=request.predicted_at,
        redactions=redactions,
        surrogates=given.surrogates,
        seconds=given.answer.seconds,
    )


def correction_id(request_id: str, reviewer: str, given: GivenAnswer) -> str:
    """Return the id of this reviewer's answer: of question and edit, and of its words.

    Without the words, an edit that was published but not recorded would share its id with another one that the
    reviewer gives instead, and a store that has the first would drop the second.
    """
    said = (given.answer.label or "", given.answer.preference or "")
    return f"correction-{content_hash(request_id, reviewer, str(given.edits), *said, length=20)}"
