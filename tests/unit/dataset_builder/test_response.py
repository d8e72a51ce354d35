"""Labels are weighed by the probability that their prediction was drawn and that somebody answered."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.quality import QuestionCount
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import Vote, votes_of
from services.dataset_builder.checks.response import ResponseRates, response_rates
from services.dataset_builder.pipeline import Inputs, build_dataset

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = TaskSpec(name="t", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=("right", "wrong"))
AUDIT_RATE, DOUBT_RATE = 0.05, 0.76


def answered(number: int, purpose: Purpose, own: float, drawn: float | None, label: str = "right") -> Vote:
    text = f"{chr(97 + number % 26) * 9} {number * 7919} {chr(97 + number * 7 % 26) * 9} went wrong again with my order"
    given = CorrectionSubmitted(
        occurred_at=NOON, task=SPEC.name, task_revision=SPEC.revision, correction_id=f"c{number}",
        request_id=f"r{number}", prediction_id=f"p{number}", purpose=purpose, reviewer="ana",
        call=Call(messages=(Message(role=Role.USER, content=text),)), answers=(Answer(text="right"),), label=label,
        inclusion_probability=own, drawn_probability=drawn,
    )  # fmt: skip
    (vote,) = votes_of([given])
    return vote


def test_what_is_estimated_of_traffic_does_not_change_where_audits_are_answered_and_most_doubts_are_not() -> None:
    """Of 10,000 answers three quarters are sure, and 97 % of them right; of the doubtful ones half are right."""
    chance = random.Random(20)
    votes, truth, drawn = [], [], {Purpose.AUDIT: 0, Purpose.LOW_CONFIDENCE: 0}
    for number in range(10_000):
        is_doubtful = number % 4 == 0
        label = "right" if chance.random() < (0.5 if is_doubtful else 0.97) else "wrong"
        truth.append(label == "right")
        doubt_rate = DOUBT_RATE if is_doubtful else 0.0
        either = 1.0 - (1.0 - AUDIT_RATE) * (1.0 - doubt_rate)
        if chance.random() < AUDIT_RATE:
            drawn[Purpose.AUDIT] += 1
            votes.append(answered(number, Purpose.AUDIT, AUDIT_RATE, either, label))
        elif chance.random() < doubt_rate:
            drawn[Purpose.LOW_CONFIDENCE] += 1
            if chance.random() < 0.15:  # The queue has the audits first, and people's day ends.
                votes.append(answered(number, Purpose.LOW_CONFIDENCE, (1.0 - AUDIT_RATE) * doubt_rate, either, label))
    rates = response_rates(votes, drawn)
    assert (rates.audits, rates.doubts) == (1.0, pytest.approx(0.15, abs=0.02))
    share = sum(truth) / len(truth)
    assert right_share(votes, rates) == pytest.approx(share, abs=0.02)
    assert right_share(votes, ResponseRates()) > share + 0.05, "as if each doubt had been answered"


def right_share(votes: list[Vote], rates: ResponseRates) -> float:
    weights = [1.0 / (rates.probability(vote) or 1.0) for vote in votes]
    return sum(w for w, vote in zip(weights, votes, strict=True) if vote.label == "right") / sum(weights)


def test_a_prediction_counts_once_and_a_complaint_not_at_all() -> None:
    audit = answered(1, Purpose.AUDIT, 0.1, 0.4)
    votes = [audit, replace(audit, voter="ben", correction_id="c2"), answered(3, Purpose.FEEDBACK, 1.0, None)]
    votes.insert(0, answered(4, Purpose.LOW_CONFIDENCE, 0.2, 0.4))
    audits = QuestionCount(sample="audits", asked=4, answered=1)
    doubts = QuestionCount(sample="doubts", asked=10, answered=1)
    assert response_rates(votes, {Purpose.AUDIT: 4}) == ResponseRates(0.25, 1.0, (audits,))
    drawn = {Purpose.AUDIT: 4, Purpose.LOW_CONFIDENCE: 7, Purpose.UNCALIBRATED: 3}
    assert response_rates(votes, drawn) == ResponseRates(0.25, 0.1, (audits, doubts))
    assert response_rates(votes, {}) == ResponseRates(), "nothing is known of the questions"
    assert response_rates(votes * 9, {Purpose.AUDIT: 0, Purpose.LOW_CONFIDENCE: 7}).audits == 1.0
    assert ResponseRates(0.5, 0.1).probability(votes[-1]) is None


def test_answers_count_as_far_back_as_the_questions_do() -> None:
    votes = [
        replace(answered(number, Purpose.AUDIT, 0.1, 0.4), predicted_at=NOON - timedelta(days=number))
        for number in range(10)
    ]
    assert response_rates(votes, {Purpose.AUDIT: 6}, NOON - timedelta(days=2)).audits == 0.5


def test_a_row_carries_the_probability_that_it_is_there() -> None:
    votes = [answered(number, Purpose.AUDIT, 0.1, 0.4) for number in range(10)]
    votes += [answered(number, Purpose.UNCALIBRATED, 0.2, 0.4, "wrong") for number in range(10, 20)]
    drawn = {Purpose.AUDIT: 20, Purpose.UNCALIBRATED: 100}
    dataset = build_dataset(Inputs(votes, SPEC, questions_drawn=drawn)).dataset
    found = {(row.answer, round(row.drawn_probability or 0.0, 6)) for row in (*dataset.train, *dataset.eval)}
    assert found == {("right", 0.08), ("wrong", 0.12)}, "0.5 * 0.1 + 0.1 * 0.3, and 0.1 * 0.2 + 0.5 * 0.2"
