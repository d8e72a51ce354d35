"""Draws the predictions that people are asked about. Pure.

People answer few questions, so what is known of production comes from samples. These are Poisson samples: a prediction
is drawn if a hash of its id is below a rate that was fixed before the prediction was read. The rate is then its true
inclusion probability, and answers weighted by its inverse estimate production without bias (Horvitz & Thompson 1952).

audit          a share of all answers, confident ones too
uncalibrated   answers of an arm whose confidence means nothing yet: the base model, an imported log
confidence .x  answers with a low calibrated confidence (`is_low`), by tenths of it
feedback       answers that a user called wrong: all of them

The rates of a day are planned when its first prediction is read, from the latest day before (`plan_rates`). Where
traffic exceeds that plan, two brakes follow from the number of questions so far, never from the prediction: the audit's
rate falls to a quarter each time that it has used up its part of the budget, and other questions end for the day.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from schemas.labels import Purpose
from schemas.predictions import Confidence
from schemas.task_settings import FailureSettings

AUDIT = "audit"
UNCALIBRATED = "uncalibrated"
FEEDBACK = "feedback"
BANDS = tuple(f"confidence .{tenth}" for tenth in range(10))
STRATA = (AUDIT, UNCALIBRATED, FEEDBACK, *BANDS)
USUAL_THRESHOLD = 0.6
"""Below it a calibrated confidence is low where neither the task nor the adapter has a threshold.

A prediction below it is about as probably wrong as right: what people look for failure modes in."""
SLACK = 1.2
"""How far a day's questions may exceed its budget: samples vary, and so does traffic."""
_AUDIT_PART = 0.5
"""The most that the audit takes of the review budget."""
_WEIGHT = {UNCALIBRATED: 1.0} | {band: 1.0 - (tenth + 0.5) / 10 for tenth, band in enumerate(BANDS)}
"""Rates are in proportion to how many wrong answers a stratum promises; nothing is promised without a calibration."""


@dataclass(frozen=True)
class Sighting:
    """A prediction as sampling sees it. `stratum` is None where only the audit may ask about it. One that is not new
    has been drawn or not, and counted, before."""

    prediction_id: str
    task: str
    task_revision: str
    occurred_at: datetime
    user_hash: str | None
    stratum: str | None
    auditable: bool
    is_new: bool = True


@dataclass(frozen=True)
class Sightings:
    """The predictions of a batch in their order, the rules of their tasks, and the day on which they are read."""

    sightings: Sequence[Sighting]
    rules: Mapping[str, FailureSettings]
    day: date


@dataclass(frozen=True)
class ReviewQuestion:
    """A prediction that was drawn, for what purpose, and with what probability.

    `drawn_probability`: of being drawn by the audit or for looking wrong, whichever. None: it was not chance.
    """

    prediction_id: str
    purpose: Purpose
    inclusion_probability: float
    drawn_probability: float | None = None


@dataclass
class Stratum:
    """A kind of predictions on one day. `refused` were drawn when the day's questions were used up."""

    rate: float
    seen: int = 0
    asked: int = 0
    refused: int = 0


def is_low(confidence: Confidence, rules: FailureSettings) -> bool:
    """Return True if a calibrated confidence is low: by the task's threshold, else the adapter's, else the usual one.

    A threshold of the task's is a person's own choice, so it wins. The adapter's has the errors that it was found from
    at or below it; the others are strict bounds.
    """
    score = confidence.score or 0.0
    if rules.confidence_threshold is not None:
        return score < rules.confidence_threshold
    return score < USUAL_THRESHOLD if confidence.threshold is None else score <= confidence.threshold


def stratum_of(confidence: Confidence, rules: FailureSettings) -> str | None:
    """Return the stratum of an answer besides the audit; None if it is confident enough to be left alone."""
    if confidence.calibration is None:
        return UNCALIBRATED
    score = confidence.score or 0.0
    return BANDS[min(int(score * 10), 9)] if is_low(confidence, rules) else None


def plan_rates(rules: FailureSettings, seen: Mapping[str, int]) -> dict[str, float]:
    """Return each stratum's rate on a day. `seen`: predictions by stratum on the latest day before; empty: none yet.

    The audit comes first, then feedback, which is asked about whole. The rest of the budget goes to the other strata in
    proportion to their weights, as far as a rate can be at most 1.
    """
    audited = seen.get(AUDIT, 0)
    audit = min(rules.audit_share, audit_budget(rules) / audited) if audited else rules.audit_share
    left = max(rules.review_budget_per_day - audit * audited - seen.get(FEEDBACK, 0), 0.0)
    scale = _scale(left, {stratum: seen.get(stratum, 0) for stratum in _WEIGHT})
    return {AUDIT: audit, FEEDBACK: 1.0} | {s: min(1.0, scale * weight) for s, weight in _WEIGHT.items()}


def _scale(budget: float, seen: Mapping[str, int]) -> float:
    """Return the factor c for which the sum of seen * min(1, c * weight) is the budget; infinite if it suffices."""
    weighted = sum(count * _WEIGHT[stratum] for stratum, count in seen.items())
    for stratum in sorted(seen, key=_WEIGHT.__getitem__, reverse=True):
        if weighted <= 1e-9 or budget * _WEIGHT[stratum] <= weighted:
            break
        budget -= seen[stratum]  # Asked about whole.
        weighted -= seen[stratum] * _WEIGHT[stratum]
    return budget / weighted if weighted > 1e-9 else math.inf


def audit_budget(rules: FailureSettings) -> int:
    """Return how many questions of a day may be the audit's."""
    return math.ceil(_AUDIT_PART * rules.review_budget_per_day)


class DayOfQuestions:
    """Draws the questions of a task's day, one prediction after the other, and counts in `strata`."""

    def __init__(self, strata: Mapping[str, Stratum], rules: FailureSettings) -> None:
        self.strata = strata
        self._rules = rules

    def draw(self, sighting: Sighting) -> ReviewQuestion | None:
        """Return the question about a prediction, if it is drawn. One that both samples draw is asked as an audit."""
        audit, audit_rate = self.strata[AUDIT], 0.0
        if sighting.auditable:
            audit_rate = self._audit_rate()
            audit.seen += 1
        stratum = None if sighting.stratum is None else self.strata[sighting.stratum]
        if stratum is not None:
            stratum.seen += 1
        if sampling_point("audit", sighting.prediction_id) < audit_rate:
            either = 1.0 - (1.0 - audit_rate) * (1.0 - self._suspect_rate(sighting.stratum))
            audit.asked += 1  # After it: this question itself may spend the budget.
            return ReviewQuestion(sighting.prediction_id, Purpose.AUDIT, audit_rate, either)
        if stratum is None or sampling_point("question", sighting.prediction_id) >= stratum.rate:
            return None
        if self._is_spent():
            stratum.refused += 1
            return None
        stratum.asked += 1
        drawn = None if sighting.stratum == FEEDBACK else 1.0 - (1.0 - audit_rate) * (1.0 - stratum.rate)
        probability = stratum.rate * (1.0 - audit_rate)
        return ReviewQuestion(sighting.prediction_id, _purpose(sighting.stratum), probability, drawn)

    def _suspect_rate(self, stratum: str | None) -> float:
        """Return how probable it is that a prediction is drawn for looking wrong. A complaint is not a sample's."""
        return 0.0 if stratum in (None, FEEDBACK) or self._is_spent() else self.strata[str(stratum)].rate

    def _audit_rate(self) -> float:
        budget = audit_budget(self._rules)
        used_up = math.floor(self.strata[AUDIT].asked / (SLACK * budget)) if budget else 0
        return self.strata[AUDIT].rate * 0.25**used_up if budget else 0.0

    def _is_spent(self) -> bool:
        asked = sum(stratum.asked for stratum in self.strata.values())
        return asked + 1 > SLACK * self._rules.review_budget_per_day


def _purpose(stratum: str | None) -> Purpose:
    if stratum == FEEDBACK:
        return Purpose.FEEDBACK
    return Purpose.UNCALIBRATED if stratum == UNCALIBRATED else Purpose.LOW_CONFIDENCE


def sampling_point(sample: str, prediction_id: str) -> float:
    """Return a number in [0, 1) that follows from a prediction's id; those of different samples are independent."""
    digest = hashlib.sha256(f"{sample}\x1f{prediction_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
