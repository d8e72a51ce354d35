"""`ratchet advise`, its rules: the written cases, and what each condition reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cli.advice.log import LogFacts
from deploy.cli.advice.rules import Answers, Condition, Facts, Need, Reading, Recommendation, advise
from schemas.approaches import ApproachTable
from schemas.tasks import TaskKind
from tests.unit.deploy.cli.advice.cases import CASES, Case

PASSED = json.loads(Path("schemas/examples/adapters.evaluated.v1/passed.json").read_text())
TABLE = ApproachTable.model_validate(PASSED["approaches"])
TEXT = Facts(TaskKind.GENERATION)


def reading(condition: Condition, facts: Facts, answers: Answers) -> Reading:
    (found,) = (r for r in advise(facts, answers).readings if r.condition is condition)
    return found


@pytest.mark.parametrize("case", CASES, ids=[case.description[:60] for case in CASES])
def test_a_written_case_gets_the_advice_that_a_person_wrote(case: Case) -> None:
    assert advise(case.facts, case.answers).recommendation is case.right


def test_there_are_thirty_cases_and_every_advice_is_among_them() -> None:
    assert len(CASES) >= 30
    assert {case.right for case in CASES} == set(Recommendation)


def test_what_is_unknown_counts_as_no_and_says_what_would_make_it_known() -> None:
    given = advise(TEXT, Answers())
    assert {r.holds for r in given.readings} == {None}
    assert all(r.detail for r in given.readings)
    assert "--latency-budget" in reading(Condition.LATENCY, TEXT, Answers()).detail
    assert given.recommendation is Recommendation.PROMPT
    assert any("Not known, and counted as no: strict format, domain words" in said for said in given.reasons)
    assert any("--need" in said for said in given.reasons)


def test_labels_and_fields_need_no_question_about_what_an_answer_takes() -> None:
    assert advise(Facts(TaskKind.CLASSIFICATION), Answers()).need is Need.SKILL
    assert advise(TEXT, Answers()).need is None
    assert advise(Facts(TaskKind.CLASSIFICATION), Answers(need=Need.KNOWLEDGE)).need is Need.KNOWLEDGE


@pytest.mark.parametrize(
    ("tokens", "said", "holds"),
    [
        (1.3, None, False),
        (2.4, None, True),
        (1.75, None, None),
        (1.75, True, True),
        (2.4, False, False),
        (None, None, None),
    ],
)
def test_words_are_counted_unless_a_person_says_what_they_are(
    tokens: float | None, said: bool | None, holds: bool | None
) -> None:
    counted = replace(TEXT, log=LogFacts(tokens_per_word=tokens))
    assert reading(Condition.DOMAIN_WORDS, counted, Answers(domain_words=said)).holds is holds


def test_a_cost_that_is_measured_is_compared_with_the_budget_and_named() -> None:
    measured = replace(TEXT, cost_per_month=120.0, currency="EUR")
    over = reading(Condition.COST, measured, Answers(budget_month=100.0))
    assert over.holds
    assert "120.00 EUR" in over.detail and "100.00 EUR" in over.detail
    assert not reading(Condition.COST, measured, Answers(budget_month=130.0)).holds
    assert "--cost-budget" in reading(Condition.COST, measured, Answers()).detail


def test_the_latency_of_today_is_shown_beside_the_budget_and_decides_nothing() -> None:
    slow = replace(TEXT, log=LogFacts(p95_ms=4_000.0))
    assert "4,000 ms" in reading(Condition.LATENCY, slow, Answers(budget_ms=900.0)).detail
    assert not reading(Condition.LATENCY, slow, Answers(budget_ms=900.0)).holds
    assert reading(Condition.LATENCY, slow, Answers(budget_ms=499.0)).holds


def test_advice_says_what_evidence_would_change_it() -> None:
    labels = Facts(TaskKind.CLASSIFICATION, examples=400)
    few = advise(labels, Answers(budget_ms=900.0))
    assert few.would_change[0].startswith("1 of these would make it fine-tuning: ")
    assert "1,000 labelled examples" in few.would_change[0] and "a budget under 500 ms" in few.would_change[0]
    both = advise(labels, Answers(budget_ms=300.0))
    assert both.would_change[0].startswith("1 of these together would make it few-shot prompts: ")
    assert "a budget of 500 ms or more" in both.would_change[0]
    for case in CASES:
        assert advise(case.facts, case.answers).would_change, case.description


def test_where_more_than_two_conditions_hold_all_but_one_would_have_to_go() -> None:
    measured = replace(
        TEXT, log=LogFacts(machine_read=1.0, tokens_per_word=2.4), cost_per_month=9.0, examples=5_000, approaches=TABLE
    )
    for answers, held, said in (
        (Answers(Need.SKILL), 3, "2 of these together would make it few-shot prompts: "),
        (Answers(Need.SKILL, budget_ms=300.0), 4, "3 of these together would make it few-shot prompts: "),
        (Answers(Need.SKILL, budget_ms=300.0, budget_month=5.0), 5, "4 of these together would make it few-shot"),
    ):
        given = advise(measured, answers)
        holding = [r for r in given.readings if r.holds]
        assert (given.recommendation, len(holding)) == (Recommendation.FINE_TUNE, held)
        (change,) = given.would_change
        assert change.startswith(said)
        assert all(r.would_change in change for r in holding)


def test_there_is_always_evidence_that_would_change_the_advice() -> None:
    for case in CASES:
        assert advise(replace(case.facts, approaches=TABLE), case.answers).would_change, case.description


@pytest.mark.parametrize("case", CASES, ids=[case.description[:60] for case in CASES])
def test_the_evidence_named_for_few_shot_does_change_it(case: Case) -> None:
    """A hundred thousand examples, a budget of 100 ms: what the advice asks for makes it fine-tuning."""
    if case.right in (Recommendation.FEW_SHOT, Recommendation.PROMPT):
        changed = replace(case.facts, examples=100_000)
        assert advise(changed, replace(case.answers, budget_ms=100.0)).recommendation is Recommendation.FINE_TUNE


def test_what_the_last_evaluation_found_comes_first_and_overrules_no_condition() -> None:
    facts = Facts(TaskKind.CLASSIFICATION, examples=5_000)
    without, beside = advise(facts, Answers()), advise(replace(facts, approaches=TABLE), Answers())
    assert beside.recommendation is without.recommendation is Recommendation.FINE_TUNE
    assert beside.reasons[0].startswith("The last evaluation: A linear classifier on sentence embeddings does as well")
    assert any("ratchet cycle" in said for said in without.would_change)
    assert not any("ratchet cycle" in said for said in beside.would_change)


def test_answers_without_a_price_leave_the_cost_unknown_and_their_model_is_named() -> None:
    found = reading(Condition.COST, replace(TEXT, log=LogFacts(unpriced=("other",))), Answers(budget_month=700.0))
    assert found.holds is None
    assert "`other`" in found.detail
