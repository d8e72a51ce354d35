from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import services.evaluator.calibration as calibration_module
from schemas.adapters import Calibration
from services.evaluator.calibration import (
    MIN_ANSWERS,
    MIN_EFFECTIVE,
    expected_calibration_error,
    isotonic_map,
    probability_wrong,
    temperature_map,
)
from services.evaluator.calibration import fit as fit_and_cross_fit
from services.evaluator.statistics.low_confidence import low_confidence
from services.evaluator.statistics.traffic import TrafficSample
from shared.model.confidence import calibrated

LABELS = 10
CHANCE = 1 / (LABELS - 1)
RECALL = 0.8


def simulated(answers: int, truth: float, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores of a model whose log-odds are `truth` times too large, and whether each answer was right."""
    random = np.random.default_rng(seed)
    honest = random.normal(2.0, 2.0, answers)
    right = random.random(answers) < 1 / (1 + np.exp(-honest))
    return 1 / (1 + np.exp(-truth * honest)), right


def fit(
    adapter: str,
    scores: Sequence[float | None],
    right: Sequence[Any],
    labels: int,
    traffic: TrafficSample | None = None,
) -> Calibration | None:
    found = fit_and_cross_fit(adapter, scores, right, 1 / (labels - 1), RECALL, traffic)
    return None if found is None else found.calibration


def fitted(answers: int, truth: float, seed: int = 7) -> Calibration:
    scores, right = simulated(answers, truth, seed)
    found = fit("desk-1", list(scores), list(right), LABELS)
    assert found is not None
    return found


def mapped(found: Calibration, scores: np.ndarray) -> np.ndarray:
    """Calibrated scores, to a fortieth of a log-odd: a Python call for each of 20,000 would take most of the time."""
    odds = np.round(40 * np.log(scores / (1 - scores))) / 40
    each, places = np.unique(odds, return_inverse=True)
    return np.array([calibrated(found, score) for score in 1 / (1 + np.exp(-each))])[places]


def test_below_a_thousand_answers_the_map_is_a_temperature_and_above_it_is_isotonic() -> None:
    few, many = fitted(900, 3.0), fitted(3_000, 3.0)
    assert (few.kind, few.answers) == ("temperature", 900)
    assert few.temperature == pytest.approx(3.0, rel=0.15)
    assert (many.kind, many.answers) == ("isotonic", 3_000)
    scores, right = simulated(20_000, 3.0, seed=8)
    for found in (few, many):
        assert expected_calibration_error(mapped(found, scores), right) < 0.02
        assert expected_calibration_error(scores, right) > 0.08


def test_near_copies_count_as_one_answer_and_none_is_judged_by_a_map_that_was_fitted_on_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """240 texts of five copies each are no thousand answers: a map of as many steps would follow their accidents."""
    scores, right = (np.repeat(values, 5) for values in simulated(240, 1.0))
    fitted_on: list[np.ndarray] = []

    def watched(scores: np.ndarray, *others: Any) -> dict[str, object]:
        fitted_on.append(scores)
        return temperature_map(scores, *others)

    monkeypatch.setattr(calibration_module, "temperature_map", watched)
    groups = np.repeat(np.arange(240), 5)
    found = fit_and_cross_fit("desk-1", list(scores), list(right), CHANCE, RECALL, groups=groups)
    assert found is not None
    assert (found.calibration.kind, found.calibration.answers) == ("temperature", 1_200)
    assert [len(of_map) for of_map in fitted_on] == [1_200] + [960] * 5
    for of_fold in fitted_on[1:]:
        assert set(np.unique(of_fold, return_counts=True)[1]) == {5}


@pytest.mark.parametrize(("answers", "max_error", "truth"), [(300, 0.035, 0.6), (300, 0.035, 2.0), (3_000, 0.025, 1.0)])
def test_mistakes_of_reviewers_lower_the_confidence_only_a_little(answers: int, max_error: float, truth: float) -> None:
    asked, honest = simulated(20_000, truth, seed=8)
    errors, shares = [], []
    for seed in range(5):
        scores, right = simulated(answers, truth, seed)
        chance = np.random.default_rng(seed + 100)
        wrong = chance.random(answers) < 0.06
        judged = np.where(wrong, ~right & (chance.random(answers) < CHANCE), right)
        found = fit("desk-1", list(scores), list(judged), LABELS)
        assert found is not None
        errors.append(expected_calibration_error(mapped(found, asked), honest))
        shares.append(found.mistakes)
    assert np.mean(errors) < max_error
    assert 0.025 < np.mean(shares) < 0.08


@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("answers", [300, 2_000])
def test_the_reported_error_is_that_of_answers_outside_the_fit(truth: float, answers: int) -> None:
    found = fitted(answers, truth)
    scores, right = simulated(20_000, truth, seed=9)
    noise = 0.03 if answers == 300 else 0.015  # Fifteen bins of answers/15 each scatter by about so much.
    assert found.ece_after == pytest.approx(expected_calibration_error(mapped(found, scores), right), abs=2 * noise)
    assert found.ece_before == pytest.approx(expected_calibration_error(scores, right), abs=2 * noise)


def test_few_answers_give_a_map_near_identity_and_too_few_give_none() -> None:
    sure = [0.99] * MIN_ANSWERS
    found = fit("desk-1", sure, [True] * MIN_ANSWERS, LABELS)
    assert found is not None
    assert 0.7 < found.temperature <= 1.0
    assert fit("desk-1", sure[1:], [True] * (MIN_ANSWERS - 1), LABELS) is None
    assert fit("desk-1", [None] * 500, [True] * 500, LABELS) is None


def test_few_answers_do_not_make_honest_confidence_surer() -> None:
    """78 answers, by chance right wherever they are surer than 0.55: without a stricter prior it would be 0.33."""
    honest = 1 / (1 + np.exp(-np.linspace(-1.0, 6.0, 78)))
    right = honest > 0.55
    found = fit("desk-1", list(honest), list(right), LABELS)
    assert found is not None
    assert 0.55 < found.temperature < 0.75
    unsure = fit("desk-1", list(honest), list(np.arange(78) % 3 > 0), LABELS)
    assert unsure is not None
    assert unsure.temperature > 1.8, "few answers may lower confidence"


def test_few_answers_move_scores_less_whose_parts_are_calibrated_already() -> None:
    """Eighty answers have eight errors: their temperature is mostly chance, which would be fitted twice."""
    scores, right = simulated(80, 2.5)
    own, pool = (fit_and_cross_fit("desk-1", list(scores), list(right), CHANCE, RECALL, pooled=pooled)
                 for pooled in (False, True))  # fmt: skip
    assert own is not None and pool is not None
    assert 1.0 < pool.calibration.temperature < 0.85 * own.calibration.temperature


def test_answers_without_a_score_do_not_count() -> None:
    scores, right = simulated(100, 2.0)
    with_gaps = [None if n % 2 else score for n, score in enumerate(scores)]
    found = fit("desk-1", with_gaps, list(right), LABELS)
    assert found is not None
    assert found.answers == 50
    assert (
        found.temperature
        == temperature_map(scores[::2], right[::2].astype(float), CHANCE, np.ones(len(scores[::2])))["temperature"]
    )


def test_the_name_follows_from_the_adapter_and_the_map() -> None:
    assert fitted(100, 2.0).name == fitted(100, 2.0).name
    assert fitted(100, 2.0).name != fitted(100, 3.0).name
    assert fitted(100, 2.0).name.startswith("desk-1-")


def test_the_calibration_error_is_zero_for_true_frequencies_and_one_for_their_opposite() -> None:
    right = np.array([1.0, 0.0] * 30)
    assert expected_calibration_error(np.full(60, 0.5), right) == 0.0
    assert expected_calibration_error(1.0 - right, right, bins=2) == 1.0


pairs = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=MIN_ANSWERS, max_size=200)


@settings(max_examples=50)
@given(pairs, st.sampled_from([temperature_map, isotonic_map]), st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_every_map_preserves_the_order_of_scores(pairs, fit_map, asked) -> None:  # type: ignore[no-untyped-def]
    scores, right = np.array([s for s, _ in pairs]), np.array([float(r) for _, r in pairs])
    fields = fit_map(scores, right, CHANCE, np.ones(len(scores)))
    found = Calibration.model_validate({**fields, "name": "n", "answers": 1, "ece_before": 0.0, "ece_after": 0.0})
    mapped = [calibrated(found, score) for score in sorted(asked)]
    assert all(0.0 <= score <= 1.0 for score in mapped)
    assert all(low <= high + 1e-12 for low, high in pairwise(mapped))


def test_an_isotonic_map_increases_strictly() -> None:
    scores, right = simulated(3_000, 3.0)
    found = fit("desk-1", list(scores), list(right), LABELS)
    assert found is not None
    mapped = [calibrated(found, score) for score in 1 / (1 + np.exp(-np.linspace(-18.0, 18.0, 500)))]
    assert all(low < high for low, high in pairwise(mapped))


def test_the_map_is_fitted_on_the_sample_of_traffic_where_it_suffices() -> None:
    """At one score suspects, of whom there are four for each audit, are wrong more often than the traffic is."""
    audit_scores, audit_right = simulated(400, 1.0, seed=1)
    suspect_scores, suspect_right = simulated(1_600, 1.0, seed=2)
    suspect_right &= np.random.default_rng(3).random(1_600) < 0.6
    scores, right = np.concatenate([audit_scores, suspect_scores]), np.concatenate([audit_right, suspect_right])
    traffic = TrafficSample(np.arange(2_000), np.where(np.arange(2_000) < 400, 40.0, 1.0))
    asked, honest = simulated(20_000, 1.0, seed=8)
    errors = []
    for sample in (traffic, None):
        found = fit("desk-1", list(scores), list(right), LABELS, sample)
        assert found is not None
        errors.append(expected_calibration_error(mapped(found, asked), honest))
        assert found.basis == ("rows" if sample is None else "traffic")
    assert errors[0] < 0.05 < 0.1 < errors[1]


def test_few_audits_that_stand_for_most_answers_are_not_followed_into_their_accidents() -> None:
    """1,300 suspects and 150 audits, each of which counts as fifty: as much as 170 answers of equal weight tell."""
    scores, right = simulated(1_450, 1.6, seed=2)
    traffic = TrafficSample(np.arange(1_450), np.where(np.arange(1_450) < 150, 100.0, 2.0))
    found = fit("desk-1", list(scores), list(right), LABELS, traffic)
    assert found is not None and (found.basis, found.kind) == ("traffic", "temperature")
    equal = TrafficSample(np.arange(1_450), np.full(1_450, 2.0))
    found = fit("desk-1", list(scores), list(right), LABELS, equal)
    assert found is not None and (found.basis, found.kind) == ("traffic", "isotonic")


def test_the_threshold_of_low_confidence_travels_with_the_map() -> None:
    """Of 500 answers 100 are wrong: 80 of them, and one for the further error, lie at or below the 81st."""
    scores, right = np.linspace(0.002, 1.0, 500), np.arange(500) % 5 > 0
    found = fit("desk-1", list(scores), list(right), LABELS)
    assert found is not None and found.low_confidence is not None
    low = found.low_confidence
    assert (low.errors, low.recall, low.threshold) == (100, RECALL, scores[5 * 80])
    assert low.flagged == pytest.approx(401 / 500)
    assert low.calibrated == calibrated(found, low.threshold) != low.threshold


def test_the_threshold_of_low_confidence_is_that_of_the_sample_of_traffic() -> None:
    """Suspects' errors, all of low confidence, would put it too low."""
    scores = np.concatenate([np.linspace(0.01, 0.99, 400), np.full(400, 0.005)])
    right = np.concatenate([np.arange(400) % 2 > 0, np.zeros(400, dtype=bool)])
    traffic = TrafficSample(np.arange(400), np.ones(400))
    found = fit("desk-1", list(scores), list(right), LABELS, traffic)
    assert found is not None and found.low_confidence is not None
    assert found.low_confidence.errors == 200
    assert found.low_confidence.threshold == pytest.approx(0.8, abs=0.01)


def test_mistakes_of_reviewers_leave_the_threshold_of_low_confidence_where_the_errors_are() -> None:
    """Simulated: 6 % mistakes would put it above nearly half of the answers; 0.8 of the errors are below a third."""
    asked, honest = simulated(20_000, 2.0, seed=8)
    recalls, flagged, unbelieved = [], [], []
    for seed in range(8):
        scores, right = simulated(400, 2.0, seed)
        chance = np.random.default_rng(seed + 100)
        mistaken = chance.random(400) < 0.06
        judged = np.where(mistaken, ~right & (chance.random(400) < CHANCE), right)
        found = fit("desk-1", list(scores), list(judged), LABELS)
        assert found is not None and found.low_confidence is not None
        below = asked <= found.low_confidence.threshold
        recalls.append(np.mean(below[~honest]))
        flagged.append(np.mean(below))
        plain = low_confidence(scores, judged.astype(float), np.ones(400), RECALL)
        assert plain is not None
        unbelieved.append(np.mean(asked <= plain.threshold))
    assert np.mean(recalls) == pytest.approx(RECALL, abs=0.05)
    assert np.mean(flagged) < 0.4 < np.mean(unbelieved)


def test_an_answer_that_is_judged_wrong_is_wrong_as_often_as_bayes_says() -> None:
    random = np.random.default_rng(5)
    for probability, mistakes in ((0.5, 0.06), (0.95, 0.06), (0.99, 0.02), (0.9, 0.0)):
        right = random.random(200_000) < probability
        mistaken = random.random(200_000) < mistakes
        judged = np.where(mistaken, ~right & (random.random(200_000) < CHANCE), right)
        expected = probability_wrong(np.array([probability]), mistakes, CHANCE)[0]
        assert np.mean(~right[~judged]) == pytest.approx(expected, abs=0.02)
    assert probability_wrong(np.array([1.0, 0.0]), 0.0, CHANCE).tolist() == [0.0, 1.0]


def test_too_few_errors_leave_a_map_without_a_threshold() -> None:
    found = fit("desk-1", [0.9] * 100, [False] * 3 + [True] * 97, LABELS)
    assert found is not None and found.low_confidence is None


def test_too_small_a_sample_of_traffic_leaves_the_map_to_all_rows() -> None:
    scores, right = simulated(500, 1.0)
    few = TrafficSample(np.arange(MIN_EFFECTIVE - 1), np.ones(MIN_EFFECTIVE - 1))
    found = fit("desk-1", list(scores), list(right), LABELS, few)
    assert found is not None
    assert (found.basis, found.answers) == ("rows", 500)


def test_the_brier_score_of_a_calibrated_map_is_lower_than_before() -> None:
    found = fitted(900, 3.0)
    assert found.brier_before is not None and found.brier_after is not None
    assert found.brier_after < found.brier_before
