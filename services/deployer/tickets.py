"""Tickets, what a person is shown of them, and what an answer is worth. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.conversation import Answer, Call
from schemas.task_settings import Severity
from schemas.tasks import TaskKind
from shared.grading.text import casefolded
from shared.identity import content_hash

CANNOT_TELL_LIMIT = 2
"""After so many "cannot tell" answers, whatever is asked, a ticket counts as a tie. The second question is for another
person; the console asks the first one again only where nobody else reviews."""


def label_outcome(
    kind: TaskKind, label: str | None, preference: str | None, pair: Pair, severity: Sequence[Severity] = ()
) -> float | None:
    """Return one person's answer as X: 1 the candidate was better, -1 worse, 0 no difference; None: cannot tell.

    A classification label is the truth: each arm's answer, as one text, is right or wrong by it. What a wrong answer
    costs is 1 unless `severity` has another weight for it, and X is production's cost minus the candidate's. A
    preference names a side.
    """
    if label is not None:
        if kind is TaskKind.CLASSIFICATION:
            candidate = pair.candidate or Answer()
            return _cost(label, pair.production, severity) - _cost(label, candidate, severity)
        return None  # A rewritten text does not tell which arm was closer to it.
    if preference == "cannot_tell":
        return None
    if preference in ("a", "b"):
        return 1.0 if (preference == "a") == pair.candidate_first else -1.0
    return 0.0


def _cost(truth: str, answer: Answer, severity: Sequence[Severity]) -> float:
    """Return what the answer costs where `truth` is right: 0 if it is the truth, else its weight, 1 where none is."""
    right, given = normalise(truth), normalise(answer.plain)
    if given == right:
        return 0.0
    weights = (s.weight for s in severity if (normalise(s.truth), normalise(s.answer)) == (right, given))
    return next(weights, 1.0)


@dataclass(frozen=True)
class Pair:
    """Both arms' answers. `candidate_first`: the candidate's is shown as side a."""

    production: Answer
    candidate: Answer | None
    candidate_first: bool

    @property
    def sides(self) -> tuple[Answer, Answer]:
        """The answers in the order in which a person sees them."""
        sides = (self.candidate or Answer(), self.production)
        return sides if self.candidate_first else (sides[1], sides[0])


@dataclass(frozen=True)
class DrawnTicket:
    """A ticket with what a person is shown: a plain record. `labels`: the number of answers that it has already.

    `fresh`: of a pair that was made after the promotion.
    """

    ticket_id: str
    rollout_id: str
    prediction_id: str
    user_hash: str | None
    session_hash: str | None
    call: Call | None
    pair: Pair
    labels: int
    logged_at: datetime | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Label:
    """One person's answer to a question about a ticket. `outcome`: see `label_outcome`; a newer one takes its place."""

    correction_id: str
    ticket_id: str
    request_id: str
    reviewer: str
    outcome: float | None
    given_at: datetime


def ticket_id_of(rollout_id: str, pair_id: str) -> str:
    """Return the ticket's id, which is the same for the same pair."""
    return f"ticket-{content_hash(rollout_id, pair_id, length=16)}"


def ticket_outcome(outcomes: Sequence[float | None]) -> float | None:
    """Return a ticket's X: the mean of its labels, 0 once enough people could not tell, None while pending."""
    labels = [outcome for outcome in outcomes if outcome is not None]
    if labels:
        return sum(labels) / len(labels)
    return 0.0 if len(outcomes) >= CANNOT_TELL_LIMIT else None


def normalise(answer: str) -> str:
    """Return the answer without differences in case, white space and Unicode form."""
    return " ".join(casefolded(answer).split())
