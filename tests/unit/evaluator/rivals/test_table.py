from __future__ import annotations

import random
from datetime import date

import numpy as np
import pytest

from schemas.approaches import ApproachKind, ApproachTable
from services.evaluator.rivals.findings import findings, ties
from services.evaluator.rivals.table import Measured, answer_cost, approach, mean_difference
from shared.model.prices import Cost, money, read_prices

DAY = date(2026, 11, 1)
CANDIDATE = dict.fromkeys(range(80), True)
ALONE = np.arange(80)
"""Each row is a group of its own."""


def row(kind: ApproachKind, right: int, rows: int = 80, cost: float = 0.001):  # type: ignore[no-untyped-def]
    answers = {n: n < right for n in range(rows)}
    adapter = "desk-1" if kind is ApproachKind.CANDIDATE else None
    measured = Measured(kind, answers, [10.0, 20.0], 0.01, adapter=adapter)
    return approach(measured, CANDIDATE, Cost(cost, DAY), 30_000.0, ALONE)


def test_the_interval_of_a_paired_difference_covers_the_truth_in_95_of_100_samples() -> None:
    """80 rows; the first arm alone is right on 9 % of rows, the second alone on 4 %."""
    rng, covered = random.Random(7), 0
    for _ in range(2_000):
        interval = mean_difference(rng.choices([1.0, -1.0, 0.0], [9, 4, 87], k=80), ALONE)
        covered += interval.low <= 0.05 <= interval.high
    assert covered / 2_000 >= 0.94


@pytest.mark.parametrize(("gained", "lost", "value"), [(8, 0, 0.1), (0, 8, -0.1), (4, 4, 0.0), (0, 0, 0.0)])
def test_a_paired_difference_has_a_width_even_where_no_row_differs(gained: int, lost: int, value: float) -> None:
    interval = mean_difference([1.0] * gained + [-1.0] * lost + [0.0] * (80 - gained - lost), ALONE)
    assert interval.value == pytest.approx(value)
    assert interval.low < value < interval.high


def test_near_copies_are_no_rows_of_their_own_and_intervals_still_cover() -> None:
    """40 texts with one to five copies each, on which arms stand and fall together: both are right on 80 % of them. As
    single rows they covered in 68 of 100 samples."""
    covered = np.zeros(2)
    for run in range(300):
        chance = np.random.default_rng([4, run])
        groups = np.repeat(np.arange(40), chance.integers(1, 6, 40))
        arms = ((chance.random(40) < 0.8)[groups].tolist() for _ in range(2))
        ours, theirs = (dict(enumerate(map(float, arm))) for arm in arms)
        found = approach(Measured(ApproachKind.LINEAR, theirs, [5.0], 0.1), ours, Cost(0.1, DAY), None, groups)
        assert found.candidate_gain is not None
        covered += (
            found.candidate_gain.low <= 0.0 <= found.candidate_gain.high,
            found.accuracy.low <= 0.8 <= (found.accuracy.high),
        )
    assert (covered / 300 >= 0.92).all(), covered / 300


def test_the_difference_of_equal_arms_is_as_sure_as_their_groups() -> None:
    single, copies = mean_difference([0.0] * 8, np.arange(8)), mean_difference([0.0] * 40, np.repeat(np.arange(8), 5))
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high))


def test_the_candidate_is_compared_on_the_rows_that_the_rival_was_asked_alone() -> None:
    few = Measured(ApproachKind.BASE, {0: True, 1: True, 3: False, 5: False}, [5.0], 0.1)
    made = approach(few, {0: False, 1: True, 2: False, 3: True, 4: False, 5: True}, Cost(0.1, DAY), None, ALONE)
    assert made.candidate_gain is not None and made.candidate_gain.value == 0.25
    assert (made.accuracy.n, made.cost_per_month) == (4, None)


def test_generated_texts_are_compared_by_their_scores_and_the_finding_says_so() -> None:
    candidate, rival = {n: 0.4 + 0.01 * (n % 5) for n in range(40)}, {n: 0.2 + 0.01 * (n % 7) for n in range(40)}
    rows = [
        approach(Measured(kind, scores, [5.0], 0.1), candidate, Cost(0.1, DAY), None, ALONE)
        for kind, scores in ((ApproachKind.CANDIDATE, candidate), (ApproachKind.BASE, rival))
    ]
    assert rows[0].accuracy.value == pytest.approx(0.42)
    assert rows[1].candidate_gain is not None
    assert rows[1].candidate_gain.value == pytest.approx(0.42 - sum(rival.values()) / 40)
    (said,) = findings(rows, "USD", is_scored=True)
    assert said.startswith("The adapter beats every cheap rival: a mean score of 42.0%")


def test_a_tie_with_a_linear_classifier_is_said_first_with_both_costs() -> None:
    rows = [row(ApproachKind.CANDIDATE, 80, cost=0.001), row(ApproachKind.LINEAR, 79, cost=0.000001)]
    rows.append(row(ApproachKind.BASE, 10, rows=40))
    first, *others = findings(rows, "USD")
    assert first.startswith("A linear classifier on sentence embeddings does as well as the adapter: right on 98.8%")
    assert "It costs 0.03 USD a month, the adapter 30.00 USD." in first
    assert others == []


def test_an_adapter_that_beats_all_says_over_which_rival_and_by_how_much() -> None:
    rows = [row(ApproachKind.CANDIDATE, 80), row(ApproachKind.BASE, 40), row(ApproachKind.LINEAR, 60)]
    (said,) = findings(rows, "USD")
    assert said.startswith("The adapter beats every cheap rival")
    assert "sentence embeddings (75.0%), it gains +25.0 points" in said


def test_nobody_is_beaten_who_was_hardly_asked() -> None:
    """The engine refused all prompts with examples, as for their length: no answer of theirs was worse."""
    none = Measured(ApproachKind.BASE, dict.fromkeys(range(40), 0.0), [], 0.0, unanswered=frozenset(range(40)))
    refused = approach(none, CANDIDATE, Cost(0.1, DAY), None, ALONE)
    said = findings([row(ApproachKind.CANDIDATE, 80), refused], "USD")
    assert said == ("Not compared with the base model as it is: 40 of 40 requests failed.",)
    beaten, named = findings([row(ApproachKind.CANDIDATE, 80), row(ApproachKind.LINEAR, 40), refused], "USD")
    assert beaten.startswith("The adapter beats every cheap rival that was compared") and "embeddings" in beaten
    assert named == said[0]


def test_the_candidate_gains_nothing_by_a_rivals_requests_that_failed() -> None:
    """Four of 40: the adapter beat a rival by ten points that had answered everything else as rightly."""
    right = dict.fromkeys(range(40), 1.0) | dict.fromkeys(range(4), 0.0)
    measured = Measured(ApproachKind.BASE, right, [10.0], 0.0, unanswered=frozenset(range(4)))
    rival = approach(measured, CANDIDATE, Cost(0.1, DAY), None, ALONE)
    assert (rival.failed, rival.accuracy.value) == (4, 0.9)
    assert rival.candidate_gain is not None and rival.candidate_gain.value == 0.0


def test_a_rival_some_of_whose_requests_failed_is_said_to_have() -> None:
    """A failure counts as a wrong answer: half of the prompts were refused, and the adapter beat "every rival"."""
    right = dict.fromkeys(range(40), 1.0)

    def asked(failed: int) -> tuple[str, ...]:
        answers = right | dict.fromkeys(range(failed), 0.0)
        measured = Measured(ApproachKind.BASE, answers, [10.0], 0.0, unanswered=frozenset(range(failed)))
        rival = approach(measured, CANDIDATE, Cost(0.1, DAY), None, ALONE)
        return findings([row(ApproachKind.CANDIDATE, 80), rival], "USD")

    assert asked(19) == ("Not compared with the base model as it is: 19 of 40 requests failed.",)
    assert "90.0% of 40 held-out rows, 4 of them failed requests, which count in no gain, where" in asked(4)[0]
    assert "failed" not in asked(0)[0]


def test_a_rival_that_is_measurably_worse_does_not_tie() -> None:
    assert ties(row(ApproachKind.LINEAR, 79))
    assert not ties(row(ApproachKind.LINEAR, 60))
    assert not ties(row(ApproachKind.CANDIDATE, 80))


def test_a_classifier_costs_a_core_and_a_model_its_replica() -> None:
    prices = read_prices(None)
    classifier = Measured(ApproachKind.LINEAR, {0: True}, [3_600.0], 3_600.0)
    assert answer_cost(classifier, prices, "any").amount == pytest.approx(prices.cpu_hour.price)
    model = Measured(ApproachKind.CANDIDATE, {0: True}, [3_600.0], 3_600.0)
    assert answer_cost(model, prices, "any").amount == pytest.approx(prices.gpu_hour.price)


def test_percentiles_are_measured_values() -> None:
    for times, p95 in (([float(n) for n in range(1, 101)], 95.0), ([], 0.0)):
        measured = Measured(ApproachKind.LINEAR, CANDIDATE, times, 0.1)
        assert approach(measured, CANDIDATE, Cost(0.1, DAY), None, ALONE).latency_ms_p95 == p95


def test_money_says_small_amounts_too() -> None:
    assert (money(1_234.5, "EUR"), money(0.00031, "USD")) == ("1,234.50 EUR", "0.00031 USD")


def test_a_table_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 20"):
        ApproachTable(approaches=(row(ApproachKind.BASE, 1),) * 21, currency="USD", prices_of=DAY)
