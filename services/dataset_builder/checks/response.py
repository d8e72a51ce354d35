"""How many of the questions that chance drew were answered: a row is there only if somebody did. Pure.

People get the questions of one sample in random order, so the answered ones are a random part of it. But audits come
before doubts: where people get through a part of the questions only, nearly all audits are answered and few doubts. So
a row is weighed by the probability of both, being drawn and being answered (response homogeneity groups: Särndal,
Swensson & Wretman 1992, section 15.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from schemas.labels import Purpose
from schemas.quality import QuestionCount
from services.dataset_builder.building.votes import Vote

_DIGITS = 4
_SMALLEST = 1e-9


@dataclass(frozen=True)
class ResponseRates:
    """The shares of the audit's questions, and of all others that chance drew, that were answered; each above 0.

    `questions` are their numbers, where any is known to be asked.
    """

    audits: float = 1.0
    doubts: float = 1.0
    questions: tuple[QuestionCount, ...] = ()

    def probability(self, vote: Vote) -> float | None:
        """Return how probable it was that chance drew the prediction and somebody answered; None: it was not chance.

        A prediction that both samples draw is asked about as an audit.
        """
        if vote.drawn_probability is None:
            return None
        own, other = self.audits, self.doubts
        if vote.purpose is not Purpose.AUDIT:
            own, other = other, own
        by_other = max(vote.drawn_probability - vote.inclusion_probability, 0.0)
        return max(own * vote.inclusion_probability + other * by_other, _SMALLEST)


def response_rates(votes: Iterable[Vote], drawn: Mapping[Purpose, int], since: datetime | None = None) -> ResponseRates:
    """Return the rates of a task. `drawn`: its questions by purpose, answered or not; of a purpose without any the rate
    is 1. They are about predictions made `since` then: questions and answers have age limits of their own.
    """
    audits, doubts = set[str](), set[str]()
    for vote in votes:
        is_counted = since is None or vote.predicted_at is None or vote.predicted_at >= since
        if vote.drawn_probability is not None and is_counted:
            (audits if vote.purpose is Purpose.AUDIT else doubts).add(vote.prediction_id)
    asked = drawn.get(Purpose.AUDIT, 0)
    of_audits = QuestionCount(sample="audits", asked=asked, answered=len(audits))
    of_doubts = QuestionCount(sample="doubts", asked=sum(drawn.values()) - asked, answered=len(doubts))
    known = tuple(count for count in (of_audits, of_doubts) if count.asked)
    return ResponseRates(_rate(of_audits), _rate(of_doubts), known)


def _rate(count: QuestionCount) -> float:
    """Few digits: rows change their weights from version to version no oftener than that matters."""
    if not count.answered or not count.asked:
        return 1.0
    return max(round(min(count.answered / count.asked, 1.0), _DIGITS), 10.0**-_DIGITS)
