"""What people are asked about is a sample whose probabilities are true, within the budget, and fixed beforehand."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from statistics import mean, stdev

import pytest

from schemas.labels import Purpose
from schemas.task_settings import FailureSettings
from services.failure_miner.sampling import (
    AUDIT,
    BANDS,
    FEEDBACK,
    UNCALIBRATED,
    DayOfQuestions,
    ReviewQuestion,
    Sighting,
    Stratum,
    plan_rates,
    sampling_point,
)

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
THRESHOLD = 0.6
RULES = FailureSettings(review_budget_per_day=200, audit_share=0.02, confidence_threshold=THRESHOLD)


def sighting(name: str, stratum: str | None = None, *, auditable: bool = True) -> Sighting:
    return Sighting(name, "desk", "r", NOON, None, stratum, auditable)


def a_day(rules: FailureSettings = RULES, seen: dict[str, int] | None = None) -> DayOfQuestions:
    return DayOfQuestions({name: Stratum(rate) for name, rate in plan_rates(rules, seen or {}).items()}, rules)


def seen_on(day: DayOfQuestions) -> dict[str, int]:
    return {name: stratum.seen for name, stratum in day.strata.items()}


@dataclass(frozen=True)
class Answered:
    """A prediction of a simulated production: calibrated, so it is right as often as its confidence says."""

    name: str
    confidence: float
    right: bool

    @property
    def stratum(self) -> str | None:
        return BANDS[int(self.confidence * 10)] if self.confidence < THRESHOLD else None


@cache
def production(run: int, count: int) -> list[Answered]:
    rng = random.Random(run)
    answers = []
    for number in range(count):
        confidence = rng.betavariate(2, 1)
        answers.append(Answered(f"{run}.{number}", confidence, rng.random() < confidence))
    return answers


def draw(day: DayOfQuestions, answers: Iterable[Answered]) -> dict[str, ReviewQuestion]:
    found = {}
    for answer in answers:
        if (question := day.draw(sighting(answer.name, answer.stratum))) is not None:
            found[answer.name] = question
    return found


def covered(answers: list[Answered], questions: dict[str, ReviewQuestion]) -> tuple[float, bool]:
    """Return the Hájek estimate of accuracy from the audit, and whether its 95 % interval has the true one."""
    truth = mean(answer.right for answer in answers)
    audited = [
        (answer.right, 1 / question.inclusion_probability)
        for answer in answers
        if (question := questions.get(answer.name)) is not None and question.purpose is Purpose.AUDIT
    ]
    total = sum(weight for _, weight in audited)
    estimate = sum(right * weight for right, weight in audited) / total
    # Of a Poisson sample (Särndal et al. 1992, 5.7): the squared residuals by w (w - 1).
    variance = sum(w * (w - 1) * (right - estimate) ** 2 for right, w in audited) / total**2
    return estimate, abs(estimate - truth) <= 1.96 * variance**0.5 + 1 / len(answers)


@pytest.mark.parametrize("budget", [40, 2_000])
def test_the_audit_estimates_the_accuracy_of_production_whatever_the_budget(budget: int) -> None:
    rules = RULES.model_copy(update={"review_budget_per_day": budget, "audit_share": 0.05})
    errors, hits = [], []
    for run in range(100, 140):
        first = a_day(rules)
        answers = production(run, 4_000)
        questions = draw(first, answers[:2_000])
        second = a_day(rules, seen_on(first))
        questions |= draw(second, answers[2_000:])
        estimate, hit = covered(answers, questions)
        errors.append(estimate - mean(answer.right for answer in answers))
        hits.append(hit)
    assert abs(mean(errors)) < 3 * stdev(errors) / len(errors) ** 0.5, "unbiased"
    assert mean(hits) >= 0.9


def test_an_audit_of_doubtful_answers_only_would_be_far_from_the_truth() -> None:
    """The fault that the audit mends, planted: the check above sees it."""
    answers = production(1, 20_000)
    doubtful = [answer for answer in answers if answer.confidence < THRESHOLD]
    day = a_day(RULES.model_copy(update={"review_budget_per_day": 20_000}))
    _, hit = covered(answers, draw(day, doubtful))
    assert not hit


def test_the_audit_asks_about_confident_answers_as_often_as_about_doubtful_ones() -> None:
    day = a_day(RULES.model_copy(update={"review_budget_per_day": 40_000, "audit_share": 0.1}))
    answers = production(2, 20_000)
    questions = draw(day, answers)
    for low, high in ((0.0, 0.6), (0.6, 0.9), (0.9, 1.0)):
        part = [answer for answer in answers if low <= answer.confidence < high]
        audits = [a for a in part if a.name in questions and questions[a.name].purpose is Purpose.AUDIT]
        assert len(audits) / len(part) == pytest.approx(0.1, abs=0.02)


def test_a_doubtful_answer_that_the_audit_draws_too_is_asked_as_an_audit() -> None:
    day = a_day(RULES.model_copy(update={"audit_share": 0.999_999}))
    question = day.draw(sighting("p1", BANDS[0]))
    assert question == ReviewQuestion("p1", Purpose.AUDIT, 0.999_999, 1.0)


def test_both_samples_together_count_all_answers_by_the_probability_of_being_drawn_by_either() -> None:
    """Horvitz & Thompson over audits and suspects at once; a sum that took the audit's own rate would be above it."""
    rules = RULES.model_copy(update={"audit_share": 0.3, "review_budget_per_day": 4_000})
    for run in range(3):
        answers = production(run, 10_000)
        day = a_day(rules, {AUDIT: 10_000, **{band: 700 for band in BANDS}})
        questions = draw(day, answers)
        for doubtful in (True, False):
            part = [answer for answer in answers if (answer.stratum is not None) is doubtful]
            drawn = [questions[answer.name].drawn_probability or 0.0 for answer in part if answer.name in questions]
            spread = sum((1 - p) / p**2 for p in drawn) ** 0.5
            assert abs(sum(1 / p for p in drawn) - len(part)) < 3.5 * spread


def test_an_audit_that_spends_the_days_budget_has_the_probabilities_from_before_it() -> None:
    day = a_day(RULES.model_copy(update={"audit_share": 0.5, "review_budget_per_day": 10}))
    day.strata[UNCALIBRATED].asked = 11  # One of the twelve that a day may have is left.
    audited = next(name for name in map(str, range(99)) if sampling_point("audit", name) < 0.5)
    question = day.draw(sighting(audited, UNCALIBRATED))
    assert question == ReviewQuestion(audited, Purpose.AUDIT, 0.5, 1.0), (
        "without the audit it would have been asked as well"
    )
    another = next(name for name in map(str, range(99)) if sampling_point("audit", name) < 0.5 and name != audited)
    assert day.draw(sighting(another, UNCALIBRATED)) == ReviewQuestion(another, Purpose.AUDIT, 0.5, 0.5)


def test_a_complaint_was_not_drawn_by_chance() -> None:
    question = a_day().draw(sighting("p1", FEEDBACK, auditable=False))
    assert question is not None and question.drawn_probability is None


def test_the_questions_about_doubtful_answers_count_them_by_their_probabilities() -> None:
    """Horvitz & Thompson: the sum of the inverse probabilities is the number of answers, in each stratum."""
    estimates: list[float] = []
    doubtful: list[int] = []
    for run in range(40):
        answers = production(run, 3_000)
        plan = Counter(answer.stratum or "" for answer in answers)
        questions = draw(a_day(seen=plan | {AUDIT: 3_000}), answers)
        doubtful.append(sum(a.confidence < 0.6 for a in answers))
        drawn = [q for q in questions.values() if q.purpose is Purpose.LOW_CONFIDENCE]
        estimates.append(sum(1 / q.inclusion_probability for q in drawn))
        assert len(drawn) <= 240
    assert mean(estimates) == pytest.approx(mean(doubtful), rel=0.05)


def test_the_probability_of_a_doubtful_answers_question_excludes_what_the_audit_takes() -> None:
    day = a_day(RULES.model_copy(update={"review_budget_per_day": 20_000, "audit_share": 0.25}))
    questions = [q for n in range(4_000) if (q := day.draw(sighting(f"p{n}", BANDS[1]))) is not None]
    doubts = [1 / q.inclusion_probability for q in questions if q.purpose is Purpose.LOW_CONFIDENCE]
    assert len(questions) == 4_000
    assert sum(doubts) == pytest.approx(4_000, rel=0.03)


def expected(rates: dict[str, float], seen: dict[str, int]) -> float:
    return sum(rates[name] * count for name, count in seen.items())


def test_a_plan_spends_the_budget_the_audit_first_and_the_least_confident_most() -> None:
    seen = {AUDIT: 5_000, FEEDBACK: 20, UNCALIBRATED: 300} | {band: 100 for band in BANDS[:6]}
    rates = plan_rates(RULES, seen)
    assert expected(rates, seen) == pytest.approx(200)
    assert rates[AUDIT] == pytest.approx(0.02)
    assert rates[FEEDBACK] == 1.0
    assert 1 > rates[UNCALIBRATED] > rates[BANDS[0]] > rates[BANDS[5]] > 0


def test_a_budget_that_suffices_asks_about_every_doubtful_answer() -> None:
    rates = plan_rates(RULES, {AUDIT: 1_000, BANDS[0]: 50, BANDS[3]: 60, UNCALIBRATED: 40})
    assert {rates[name] for name in (*BANDS, UNCALIBRATED)} == {1.0}


def test_a_stratum_is_asked_about_whole_before_another_gets_what_is_left() -> None:
    seen = {BANDS[0]: 10, BANDS[5]: 1_000, UNCALIBRATED: 0, AUDIT: 0}
    rates = plan_rates(RULES, seen)
    assert 0 < rates[BANDS[5]] < rates[BANDS[0]] <= 1.0
    assert expected(rates, seen) == pytest.approx(200)


def test_a_day_with_more_traffic_lowers_the_next_days_audit_rate_not_its_own() -> None:
    busy = a_day()
    first = [q for n in range(10_000) if (q := busy.draw(sighting(f"a{n}"))) is not None]
    assert len(first) > 100, "half of the budget"
    early = [q.inclusion_probability for q in first[:110]]
    assert set(early) == {0.02}
    assert plan_rates(RULES, seen_on(busy))[AUDIT] == pytest.approx(0.01)


def test_an_imported_log_of_a_million_does_not_flood_people_with_audits() -> None:
    day = a_day()
    asked = [q for n in range(200_000) if (q := day.draw(sighting(f"m{n}"))) is not None]
    assert len(asked) <= 4 * 1.2 * 100
    rates = [question.inclusion_probability for question in asked]
    assert rates == sorted(rates, reverse=True)
    estimate = sum(1 / rate for rate in rates)
    assert estimate == pytest.approx(200_000, rel=0.2), "the probabilities stay true"


def test_questions_end_when_the_day_has_a_fifth_more_than_its_budget_and_are_counted() -> None:
    day = a_day(RULES.model_copy(update={"audit_share": 0.0}))
    asked = [day.draw(sighting(f"p{n}", UNCALIBRATED)) for n in range(1_000)]
    assert [question is not None for question in asked] == [True] * 240 + [False] * 760
    assert day.strata[UNCALIBRATED].refused == 760
    assert day.draw(sighting("complaint", FEEDBACK, auditable=False)) is None


def test_a_complaint_is_asked_about_with_certainty() -> None:
    busy = {AUDIT: 1_000_000, UNCALIBRATED: 1_000_000}
    question = a_day(seen=busy).draw(sighting("p1", FEEDBACK, auditable=False))
    assert question == ReviewQuestion("p1", Purpose.FEEDBACK, 1.0)


def test_without_a_budget_nobody_is_asked() -> None:
    day = a_day(RULES.model_copy(update={"review_budget_per_day": 0, "audit_share": 1.0}))
    strata = (UNCALIBRATED, BANDS[0], FEEDBACK, None)
    assert [day.draw(sighting(f"p{n}", strata[n % 4])) for n in range(100)] == [None] * 100


@pytest.mark.parametrize("stratum", [UNCALIBRATED, BANDS[0]])
def test_questions_about_uncalibrated_answers_are_chosen_by_budget_and_say_so(stratum: str) -> None:
    day = a_day(seen={AUDIT: 4_000, stratum: 4_000})
    questions = [q for n in range(4_000) if (q := day.draw(sighting(f"p{n}", stratum))) is not None]
    purposes = Counter(question.purpose for question in questions)
    random_share = purposes[Purpose.UNCALIBRATED if stratum == UNCALIBRATED else Purpose.LOW_CONFIDENCE]
    assert random_share == pytest.approx(200 - 80, abs=35)
    assert set(purposes) == {Purpose.AUDIT, Purpose.UNCALIBRATED if stratum == UNCALIBRATED else Purpose.LOW_CONFIDENCE}


def test_the_same_prediction_is_drawn_the_same_way_again() -> None:
    first, again = a_day(seen={AUDIT: 9_000, UNCALIBRATED: 9_000}), a_day(seen={AUDIT: 9_000, UNCALIBRATED: 9_000})
    names = [f"p{n}" for n in range(1_000)]
    drawn, drawn_again = ([day.draw(sighting(name, UNCALIBRATED)) for name in names] for day in (first, again))
    assert drawn == drawn_again
    assert None in drawn and any(drawn)


def test_samples_are_independent_of_each_other() -> None:
    names = [f"p{n}" for n in range(20_000)]
    for left, right in (("audit", "question"), ("audit", "overlap"), ("question", "overlap")):
        both = mean(sampling_point(left, n) < 0.3 and sampling_point(right, n) < 0.3 for n in names)
        assert both == pytest.approx(0.09, abs=0.01)
