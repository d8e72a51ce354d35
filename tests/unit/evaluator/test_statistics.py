"""The statistics agree with the published ones and with other implementations of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control, norm
from sklearn.metrics import brier_score_loss, precision_recall_fscore_support, roc_auc_score

from services.evaluator.statistics import intervals
from services.evaluator.statistics.classes import NO_LABEL, class_scores, confusions, field_scores
from services.evaluator.statistics.confidence import (
    auroc,
    auroc_influence,
    brier,
    confidence_score,
    expected_calibration_error,
    reliability_bins,
)
from services.evaluator.statistics.intervals import group_numbers, mean_interval, resampled, weighted_share, wilson
from services.evaluator.statistics.low_confidence import low_confidence
from services.evaluator.statistics.paired import difference, holm, mcnemar_worse, p_worse, rows_to_show
from services.evaluator.statistics.traffic import MIN_UNIFORM, traffic_sample
from shared.grading.fields import FieldGrade


def test_wilson_agrees_with_the_published_interval() -> None:
    interval = wilson(15, 50)  # Newcombe 1998 gives such values.
    assert (interval.low, interval.high) == pytest.approx((0.1910, 0.4375), abs=5e-4)
    found = binomtest(15, 50).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((found.low, found.high))
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


@given(n=st.integers(1, 2_000), data=st.data())
def test_the_wilson_interval_always_contains_the_share(n: int, data: st.DataObject) -> None:
    interval = wilson(data.draw(st.integers(0, n)), n)
    assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test_and_the_flips_of_signs_agree_with_it(lost: int, gained: int) -> None:
    expected = 1.0 if lost + gained == 0 else binomtest(lost, lost + gained, alternative="greater").pvalue
    assert mcnemar_worse(lost, gained) == pytest.approx(expected)
    apart = np.array([-1.0] * lost + [1.0] * gained + [0.0] * 5)
    assert p_worse(apart, np.arange(len(apart))) == pytest.approx(expected)


def mixed(zeros: float, ones: float, a: float, b: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Scores of which these shares are 0 and 1, and the others follow a beta distribution."""

    def drawn(random: np.random.Generator, n: int) -> np.ndarray:
        which, between = random.random(n), random.beta(a, b, n)
        return np.where(which < zeros, 0.0, np.where(which < zeros + ones, 1.0, between))

    return drawn


SHAPES = (
    (0.6, 0.05, 2, 3), (0.02, 0.7, 5, 2), (0.3, 0.4, 2, 2), (0.0, 0.0, 0.5, 6), (0.0, 0.2, 6, 0.5), (0.05, 0.03, 3, 5),
    (0.04, 0.9, 4, 2), (0.93, 0.02, 2, 2),
)  # fmt: skip


@pytest.mark.parametrize("n", [15, 40])
def test_the_interval_of_a_few_scores_covers_their_mean_as_often_as_it_says(n: int) -> None:
    """Shapes of F1 and ROUGE: many zeros or ones, skewed ones, a few that are not 0 or not 1. Percentiles of the
    bootstrap cover in 90 %."""
    random, covered, asked = np.random.default_rng(5), 0, 0
    for zeros, ones, a, b in SHAPES:
        mean = ones + (1.0 - zeros - ones) * a / (a + b)
        for _ in range(60):
            scores = mixed(zeros, ones, a, b)(random, n)
            found = mean_interval(scores, np.arange(n))
            assert 0.0 <= found.low <= found.value <= found.high <= 1.0
            covered, asked = covered + (found.low <= mean <= found.high), asked + 1
    assert covered / asked >= 0.94


def test_the_interval_of_scores_of_near_copies_is_that_of_their_texts() -> None:
    scores = mixed(0.2, 0.2, 2, 2)(np.random.default_rng(5), 20)
    alone = mean_interval(scores, np.arange(20))
    copies = mean_interval(np.repeat(scores, 6), np.repeat(np.arange(20), 6))
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high))
    one = mean_interval(np.array([0.4, 0.5, 0.6]), np.zeros(3, dtype=np.intp))
    assert one.high - one.low > 0.5, "one text says little"


def test_near_copies_count_once_in_a_test_and_in_an_interval() -> None:
    apart = np.array([-1.0] * 10)
    assert p_worse(apart, np.arange(10)) == pytest.approx(2**-10)
    assert p_worse(apart, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.25)
    right = np.array([1.0] * 60 + [0.0] * 60)
    alone = mean_interval(right, np.arange(120))
    copies = mean_interval(right, np.repeat(np.arange(12), 10))
    assert copies.high - copies.low > 2.0 * (alone.high - alone.low)


def test_scores_between_right_and_wrong_are_tested_by_flips_of_signs() -> None:
    """Eight differences of one sign and of different sizes: the only flip as bad as this one is itself."""
    apart = -np.arange(1.0, 9.0) / 10.0
    assert p_worse(apart, np.arange(8)) == pytest.approx(2**-8)
    assert p_worse(-apart, np.arange(8)) == 1.0
    many = np.concatenate([-np.linspace(0.1, 1.0, 40), np.linspace(0.1, 1.0, 40)])
    assert p_worse(many, np.arange(80)) == pytest.approx(0.5, abs=0.03)


def test_the_interval_of_a_difference_contains_it_and_is_about_as_wide_as_the_normal_one() -> None:
    chance = np.random.default_rng(3)
    ours, theirs = (chance.random(400) < share for share in (0.9, 0.8))
    found = difference(ours.astype(float), theirs.astype(float), np.arange(400), None, "rows")
    apart = ours.astype(float) - theirs
    half = 1.96 * apart.std() / 20.0
    assert found.low == pytest.approx(found.value - half, abs=0.01)
    assert found.high == pytest.approx(found.value + half, abs=0.01)
    assert found.finding == "better"


def test_the_interval_of_a_difference_has_a_width_where_no_row_differs() -> None:
    found = difference(np.ones(12), np.ones(12), np.arange(12), None, "rows")
    assert (found.value, found.finding) == (0.0, "not_shown")
    assert found.low < -0.05 and found.high > 0.05


def test_the_interval_of_a_difference_covers_the_truth_where_few_rows_differ() -> None:
    """40 rows, of which 3 % are lost: without rows of its own the bootstrap covered in 78 of 100."""
    covered = 0
    for seed in range(200):
        kept = np.random.default_rng(seed).random(40) >= 0.03
        found = difference(kept.astype(float), np.ones(40), np.arange(40), None, "rows")
        covered += found.low <= -0.03 <= found.high
    assert covered >= 184


def test_holm_is_no_stricter_than_bonferroni_and_orders_stay() -> None:
    found = [0.04, 0.001, 0.012, 0.5]
    adjusted = holm(found)
    assert adjusted == pytest.approx([0.08, 0.004, 0.036, 0.5])
    assert all(a <= 4 * p for a, p in zip(adjusted, found, strict=True))
    assert all(a >= b for a, b in zip(adjusted, false_discovery_control(found), strict=True))
    assert holm([]) == []


def test_the_fewest_rows_that_can_show_a_loss_are_exact() -> None:
    assert mcnemar_worse(rows_to_show(0.02), 0) <= 0.02 < mcnemar_worse(rows_to_show(0.02) - 1, 0)


def test_equal_weights_give_the_plain_interval_and_unequal_ones_a_wider_one() -> None:
    right = np.array([1.0] * 80 + [0.0] * 20)
    plain = weighted_share(right, np.ones(100), np.arange(100))
    assert (plain.low, plain.high) == pytest.approx((wilson(80, 100).low, wilson(80, 100).high), abs=0.005)
    weights = np.tile([10.0, 0.1], 50)
    heavy = weighted_share(right, weights, np.arange(100))
    assert heavy.high - heavy.low > 1.3 * (plain.high - plain.low)
    assert weighted_share(np.ones(50), np.ones(50), np.arange(50)).low == pytest.approx(wilson(50, 50).low)


@pytest.mark.parametrize(("audits", "doubts"), [(20, 0.2), (36, 0.1), (36, 0.5), (100, 0.1)])
def test_the_interval_of_few_audits_beside_many_doubts_covers_the_share(audits: int, doubts: float) -> None:
    """Of 36 audits it covered .90 to .93: the heavy rows are few, and all of them may be right by accident."""
    chance = np.random.default_rng(7)
    inside, runs, audited = 0, 1_000, 0.01
    for _ in range(runs):
        confident = chance.binomial(round(audits / audited * 0.8), audited)
        either = 1.0 - (1.0 - audited) * (1.0 - doubts)
        doubtful = chance.binomial(round(audits / audited * 0.2), either)
        right = np.concatenate([chance.random(confident) < 0.9, chance.random(doubtful) < 0.5]).astype(np.float64)
        weights = np.repeat([1.0 / audited, 1.0 / either], [confident, doubtful])
        found = weighted_share(right, weights, np.arange(len(right)))
        inside += found.low <= 0.8 * 0.9 + 0.2 * 0.5 <= found.high
    assert inside >= 0.93 * runs


def test_rows_that_chance_did_not_draw_say_nothing_of_traffic() -> None:
    probabilities = np.array([0.5] * MIN_UNIFORM + [1.0, np.nan])
    uniform = np.array([True] * MIN_UNIFORM + [False, False])
    sample = traffic_sample(probabilities, uniform)
    assert sample is not None
    assert len(sample.positions) == MIN_UNIFORM + 1
    assert sample.weights[0] == pytest.approx(2.0 * sample.weights[-1])
    uniform[0] = False
    assert traffic_sample(probabilities, uniform) is None, "suspects alone are not traffic"


def test_scores_of_classes_agree_with_scikit_learn_and_lie_in_their_intervals() -> None:
    chance = np.random.default_rng(5)
    labels = ["a", "b", "c"]
    expected = list(chance.choice(labels, 200))
    given = [e if chance.random() < 0.7 else str(chance.choice([*labels, "else"])) for e in expected]
    classes, (macro, weighted) = class_scores(expected, given, labels, np.arange(200))
    found = precision_recall_fscore_support(expected, given, labels=labels, zero_division=0.0)
    assert [c.precision for c in classes] == pytest.approx(list(found[0]))
    assert [c.recall for c in classes] == pytest.approx(list(found[1]))
    assert [c.f1 for c in classes] == pytest.approx(list(found[2]))
    assert macro.f1.value == pytest.approx(float(np.mean(found[2])))
    assert weighted.recall.value == pytest.approx(float(found[1] @ found[3] / 200))
    for score in classes:
        assert score.f1_interval is not None
        assert 0.0 < score.f1_interval.low < score.f1 < score.f1_interval.high < 1.0
    assert macro.f1.low < macro.f1.value < macro.f1.high


def items(right: np.ndarray, per_order: int = 6) -> list[tuple[FieldGrade, ...]]:
    """Orders with a list of six items, all right or all wrong."""
    return [(FieldGrade("items[]", per_order * int(each), per_order, per_order),) for each in right]


def test_values_of_one_row_stand_and_fall_together_and_the_interval_covers() -> None:
    covered = 0
    for seed in range(100):
        right = np.random.default_rng(seed).random(40) < 0.8
        ((score,), _) = field_scores(items(right), np.arange(40))
        assert score.recall_interval == score.precision_interval
        covered += score.recall_interval.low <= 0.8 <= score.recall_interval.high
    assert covered >= 88


def test_values_that_are_all_right_are_as_many_as_their_groups() -> None:
    for groups, count in ((np.arange(40), 40), (np.repeat(np.arange(4), 10), 4)):
        ((score,), averages) = field_scores(items(np.ones(40)), groups)
        for interval in (score.recall_interval, score.precision_interval, score.f1_interval, averages[0].recall):
            assert interval is not None
            assert (interval.value, interval.low, interval.high) == pytest.approx((1.0, wilson(count, count).low, 1.0))
        assert score.recall_interval.n == 240


def test_a_field_of_few_rows_is_not_wrong_where_the_bootstrap_draws_none_of_them() -> None:
    rare = [
        (FieldGrade("note[]", matched, 2, 2),) if row < 3 else () for row, matched in enumerate([2, 1, 2] + [0] * 57)
    ]
    ((score,), _) = field_scores(rare, np.arange(60))
    assert score.recall_interval.low == pytest.approx(0.5)


def test_averages_over_labels_of_few_rows_cover_the_truth() -> None:
    """77 labels of three rows each: a resample that drew none of a label counted it as wrong, and 72 of 100 covered."""
    labels, covered = [f"label {n}" for n in range(77)], 0
    expected = labels * 3
    for seed in range(60):
        right = np.random.default_rng(seed).random(len(expected)) < 0.9
        given = [label if kept else "else" for label, kept in zip(expected, right, strict=True)]
        _, (macro, _) = class_scores(expected, given, labels, np.arange(len(expected)))
        covered += macro.recall.low <= 0.9 <= macro.recall.high
    assert covered >= 54


def test_a_label_of_three_right_rows_is_not_wrong_where_the_bootstrap_draws_none_of_them() -> None:
    expected = ["a"] * 3 + ["b"] * 60
    (rare, _), _ = class_scores(expected, expected, ["a", "b"], np.arange(63))
    assert rare.f1_interval is not None
    assert rare.f1_interval.low > 0.3


def test_single_values_keep_the_interval_of_wilson_and_those_of_near_copies_do_not() -> None:
    grades = [(FieldGrade("city", int(row % 5 > 0), 1, 1),) for row in range(60)]
    ((alone,), _) = field_scores(grades, np.arange(60))
    assert alone.recall_interval == wilson(48, 60)
    ((copies,), _) = field_scores([grades[row // 10] for row in range(60)], np.arange(60) // 10)
    assert copies.recall_interval.high - copies.recall_interval.low > 1.5 * (wilson(50, 60).high - wilson(50, 60).low)


def test_a_mean_of_equal_scores_of_few_groups_is_as_sure_as_so_few_rows() -> None:
    interval = mean_interval(np.ones(40), np.repeat(np.arange(4), 10))
    assert (interval.value, interval.low, interval.high, interval.n) == (1.0, wilson(4, 4).low, 1.0, 40)


def test_the_confusion_matrix_keeps_every_answer() -> None:
    cells = confusions(["a", "a", "b", "b"], ["a", "b", "", "b"], ["a", "b"])
    found = {(cell.expected, cell.given): cell.count for cell in cells}
    assert found == {("a", "a"): 1, ("a", "b"): 1, ("b", NO_LABEL): 1, ("b", "b"): 1}


def test_auroc_and_brier_agree_with_scikit_learn_and_the_interval_covers() -> None:
    truth, covered = None, 0
    for seed in range(100):
        chance = np.random.default_rng(seed)
        right = (chance.random(300) < 0.8).astype(float)
        scores = 1.0 / (1.0 + np.exp(-(1.5 * right + chance.normal(size=300))))
        scores = scores.round(2)  # With ties.
        value, influence = auroc_influence(scores, right)
        assert value == pytest.approx(roc_auc_score(right, scores))
        assert influence.sum() == pytest.approx(0.0, abs=1e-9)
        assert brier(scores, right) == pytest.approx(brier_score_loss(right, scores))
        interval = auroc(scores, right, np.arange(300))
        truth = 0.8556  # Phi(1.5 / sqrt 2)
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert covered >= 89


@pytest.mark.parametrize(("errors", "rights", "apart"), [(10, 40, 3.0), (10, 300, 3.0), (12, 12, 2.5), (30, 300, 3.5)])
def test_the_interval_of_an_auroc_near_1_covers_with_few_errors(errors: int, rights: int, apart: float) -> None:
    """DeLong's alone has no width where all errors are below all right answers, and covered in 64 to 77 of 100."""
    truth, covered = norm.cdf(apart / np.sqrt(2.0)), 0
    right = np.repeat([0.0, 1.0], [errors, rights])
    for seed in range(400):
        scores = apart * right + np.random.default_rng([20, seed]).normal(size=len(right))
        interval = auroc(scores, right, np.arange(len(right)))
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert covered / 400 >= 0.93


def test_no_scores_have_no_quality() -> None:
    assert confidence_score(np.array([]), np.array([]), np.arange(0)) is None


def test_bins_of_a_reliability_diagram_have_as_many_answers_and_weigh_them() -> None:
    scores = np.linspace(0.0, 0.99, 100)
    right = (np.arange(100) % 2).astype(float)
    bins = reliability_bins(scores, right, np.ones(100))
    assert [found.accuracy.n for found in bins] == [10] * 10
    assert [found.confidence for found in bins] == sorted(found.confidence for found in bins)
    assert {found.accuracy.value for found in bins} == {0.5}
    weighed = reliability_bins(scores, right, np.where(right > 0, 3.0, 1.0))
    assert {round(found.accuracy.value, 6) for found in weighed} == {0.75}


def test_answers_of_one_confidence_are_in_one_bin_whatever_their_order() -> None:
    scores, right = np.full(1_000, 0.9), np.r_[np.zeros(100), np.ones(900)]
    assert expected_calibration_error(scores, right) == pytest.approx(0.0)
    (only,) = reliability_bins(scores, right, np.ones(1_000))
    assert (only.confidence, only.accuracy.value, only.accuracy.n) == (pytest.approx(0.9), 0.9, 1_000)


def test_the_order_of_rows_makes_no_difference_to_the_calibration_error() -> None:
    chance = np.random.default_rng(4)
    scores = np.r_[np.full(300, 1.0), chance.random(400).round(1), chance.random(300)]
    right = (chance.random(1_000) < scores).astype(float)
    order = np.argsort(right)
    assert expected_calibration_error(scores[order], right[order]) == pytest.approx(
        expected_calibration_error(scores, right)
    )
    apart = reliability_bins(scores, right, np.ones(1_000))
    assert sum(each.accuracy.n for each in apart) == 1_000
    assert len(apart) >= 7


def found_of_further_errors(errors: np.ndarray, recall: float) -> float:
    """Each error in turn is the further one: the exact probability that it is found from the others' threshold."""
    found = []
    for further in range(len(errors)):
        scores = np.r_[np.delete(errors, further), 0.05, 0.95]  # Two right answers, which must not matter.
        low = low_confidence(scores, np.r_[np.zeros(len(errors) - 1), 1.0, 1.0], np.ones(len(scores)), recall)
        assert low is not None and low.errors == len(errors) - 1
        found.append(errors[further] <= low.threshold)
    return float(np.mean(found))


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.9, 0.95])
def test_a_further_error_lies_at_or_below_the_low_confidence_threshold_as_often_as_wanted(recall: float) -> None:
    """Exact, by exchangeability: at least so often, and less than one error more often where no scores are equal."""
    for count in (20, 21, 37, 60):
        errors = np.random.default_rng(count).permutation(count) / count
        assert recall <= found_of_further_errors(errors, recall) < recall + 1.0 / count
        assert found_of_further_errors(np.round(errors, 1), recall) >= recall


def test_an_error_that_may_be_none_weighs_as_probable_as_it_is() -> None:
    """Nine errors at 0.1 to 0.9 and ten judgements at 0.95, of which one in ten is right: as if it were one error."""
    scores, right = np.r_[np.arange(1, 10) / 10, np.full(10, 0.95), 0.99], np.r_[np.zeros(19), 1.0]
    believed = np.r_[np.ones(9), np.full(10, 0.1), 1.0]
    for recall, threshold in ((0.7, 0.8), (0.8, 0.9), (0.85, 0.95)):
        low = low_confidence(scores, right, np.ones(20), recall, believed)
        assert low is not None and (low.threshold, low.errors) == (threshold, 19)
    plain = low_confidence(scores, right, np.ones(20), 0.8)
    assert plain is not None and plain.threshold == 0.95


@pytest.mark.parametrize(("recall", "enough"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19)])
def test_the_low_confidence_threshold_is_unknown_below_the_errors_that_its_recall_needs(
    recall: float, enough: int
) -> None:
    scores, right = np.linspace(0.1, 0.9, enough), np.zeros(enough)
    low = low_confidence(scores, right, np.ones(enough), recall)
    assert low is not None and low.threshold == scores[-1]
    assert low_confidence(scores[1:], right[1:], np.ones(enough - 1), recall) is None


def test_the_low_confidence_threshold_weighs_rows() -> None:
    scores, right = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.9]), np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    plain = low_confidence(scores, right, np.ones(6), 0.8)
    assert plain is not None and (plain.threshold, plain.flagged) == (0.5, pytest.approx(5 / 6))
    light = low_confidence(scores, right, np.array([1.0, 1.0, 1.0, 1.0, 0.1, 4.0]), 0.7)
    assert light is not None and light.threshold == 0.4
    assert light.flagged == pytest.approx(4.0 / 8.1)
    assert low_confidence(scores, np.ones(6), np.ones(6), 0.5) is None


def test_rows_without_a_group_are_groups_of_their_own() -> None:
    assert len(set(group_numbers(["", "", "g", "g"]).tolist())) == 3


def test_f1_of_rows_that_are_all_alike_has_the_interval_of_a_share_and_not_none() -> None:
    (found, never), averages = class_scores(["a"] * 30, ["a"] * 30, ["a", "b"], np.arange(30))
    for interval in (found.f1_interval, *(average.f1 for average in averages)):
        assert interval is not None
        assert (interval.value, interval.low, interval.high) == pytest.approx((1.0, wilson(30, 30).low, 1.0))
    assert never.f1_interval is not None and (never.f1_interval.low, never.f1_interval.high) == (0.0, 1.0)


def test_means_of_right_answers_alone_are_never_rounded_to_above_one() -> None:
    for sizes in ((3, 7, 7), (1, 2, 4, 6), (49, 11, 13, 3), (2, 5, 7, 1, 9, 3, 3)):
        labels = [f"label {number}" for number in range(len(sizes))]
        expected = [label for label, size in zip(labels, sizes, strict=True) for _ in range(size)]
        _, averages = class_scores(expected, expected, labels, np.arange(len(expected)))
        assert all(average.f1.value == pytest.approx(1.0) for average in averages)
        weights = np.random.default_rng(sum(sizes)).random(len(expected))
        assert weighted_share(np.ones(len(expected)), weights, np.arange(len(expected))).value == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.8, 0.93])
def test_the_interval_of_a_share_of_near_copies_covers_the_truth_also_of_few_groups(share: float) -> None:
    """40 texts with one to five copies each, which stand and fall together: a bootstrap covers in 91 to 93 %."""
    covered = 0
    for run in range(600):
        chance = np.random.default_rng([run, 40])
        groups = np.repeat(np.arange(40), chance.integers(1, 6, 40))
        found = mean_interval((chance.random(40) < share)[groups].astype(np.float64), groups)
        covered += found.low <= share <= found.high
    assert covered / 600 >= 0.94


def test_the_interval_of_a_gain_on_traffic_covers_the_truth_where_few_rows_stand_for_most_of_it() -> None:
    """40 audited rows stand for 95 % of the answers and 150 suspects for the rest; the candidate loses 2 % of the
    first. Where none of the 40 is lost, a bootstrap knows nothing of them, and covers in 50 to 57 %."""
    weights, groups = np.repeat([0.95 / 40, 0.05 / 150], [40, 150]), np.arange(190)
    covered = 0
    for run in range(100):
        chance = np.random.default_rng([run, 6])
        lost, moved = chance.random(40) < 0.02, chance.random(150)
        candidate = np.concatenate([1.0 - lost, moved < 0.1])
        production = np.concatenate([np.ones(40), moved > 0.9])
        found = difference(candidate, production, groups, weights / weights.mean(), "traffic")
        covered += found.low <= -0.95 * 0.02 <= found.high
    assert covered >= 92


def test_where_arms_differ_on_all_rows_no_weights_round_the_difference_and_the_errors_to_above_one() -> None:
    for run in range(10):
        weights = 1.0 / np.random.default_rng(run).uniform(0.01, 1.0, 40)
        right, wrong = np.ones(40), np.zeros(40)
        for better, worse, value in ((right, wrong, 1.0), (wrong, right, -1.0)):
            found = difference(better, worse, np.arange(40), weights / weights.mean(), "traffic")
            assert found.value == pytest.approx(value)
        assert expected_calibration_error(right, wrong, weights=weights) <= 1.0
        assert brier(right, wrong, weights) <= 1.0


def test_a_bootstrap_in_portions_is_that_of_all_samples_at_once_and_never_has_a_number_for_each_row_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = np.random.default_rng(3)
    values, groups = chance.random((5_000, 2)), chance.integers(0, 700, 5_000)
    at_once = resampled(values, groups)
    monkeypatch.setattr(intervals, "_COUNTS_AT_ONCE", 30_000)
    tracemalloc.start()
    in_portions = resampled(values, groups)
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert in_portions == pytest.approx(at_once)
    assert largest < 2_000_000, "5,000 rows × 1,000 samples would be 40 MB"
    count = int(groups.max()) + 1
    drawn = np.random.default_rng(20).multinomial(count, np.full(count, 1.0 / count), size=1_000)
    assert in_portions == pytest.approx(drawn[:, groups] @ values)
