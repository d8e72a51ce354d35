"""Reviewers' reliability: planted reviewers are measured, as another implementation does; few overlaps: the prior."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from services.dataset_builder.building.votes import PRIOR_RELIABILITY
from services.dataset_builder.checks.reliability import Answer, estimate_reliability


def planted(accuracy: dict[str, float], questions: int, seed: int = 7, labels: str = "abc") -> list[Answer]:
    """Answers of reviewers who are right with a given probability."""
    rng = random.Random(seed)
    truths = [rng.choice(labels) for _ in range(questions)]
    return [
        (f"t{number:03}", reviewer, truth if rng.random() < share else rng.choice([x for x in labels if x != truth]))
        for number, truth in enumerate(truths)
        for reviewer, share in accuracy.items()
    ]


def test_without_a_prior_it_is_what_crowd_kit_computes() -> None:
    """Expected: crowd-kit 1.4.2, OneCoinDawidSkene(n_iter=200, tol=1e-9) on the same answers, its `skills_`."""
    found = estimate_reliability(planted({"ana": 0.95, "ben": 0.9, "eva": 0.6}, 60), prior=0.5, prior_answers=1e-9)
    assert found == pytest.approx({"ana": 0.999998, "ben": 0.783334, "eva": 0.533334}, abs=2e-5)


def test_planted_reviewers_are_ranked_and_measured() -> None:
    accuracy = {"ana": 0.97, "ben": 0.9, "eva": 0.75, "tom": 0.5}
    found = estimate_reliability(planted(accuracy, 400, labels="abcdef"))
    assert sorted(found, key=lambda name: -found[name]) == list(accuracy)
    for name, share in accuracy.items():
        assert found[name] == pytest.approx(share, abs=0.07)


def test_a_reviewer_who_shares_no_question_has_no_estimate() -> None:
    assert estimate_reliability([("t1", "ana", "a"), ("t2", "ben", "b")]) == {}


def test_few_overlaps_stay_near_the_prior_and_more_move_it_smoothly() -> None:
    estimates = [
        estimate_reliability(planted({"ana": 1.0, "ben": 1.0, "eva": 0.0}, questions))["eva"]
        for questions in (1, 5, 20, 80)
    ]
    assert PRIOR_RELIABILITY > estimates[0] > 0.85
    assert estimates == sorted(estimates, reverse=True)
    assert estimates[-1] < 0.3


def test_the_order_of_answers_makes_no_difference() -> None:
    answers = planted({"ana": 0.9, "ben": 0.8}, 50)
    assert estimate_reliability(answers) == estimate_reliability(answers[::-1])


def test_one_label_for_everything_is_no_error() -> None:
    assert estimate_reliability([("t1", "ana", "a"), ("t1", "ben", "a")])["ana"] > PRIOR_RELIABILITY


def test_a_hundred_thousand_double_labels_of_many_classes_are_a_matter_of_their_patterns() -> None:
    labels = [f"label {number}" for number in range(77)]
    answers = [(f"t{n}", name, labels[n % 77]) for n in range(50_000) for name in ("ana", "ben")]
    found = estimate_reliability(answers)
    assert min(found.values()) > 0.999


def test_sets_of_labels_which_are_as_many_as_the_questions_fit_into_memory() -> None:
    """Of thirty labels, two reviewers, one of whom is wrong now and then: thousands of different sets."""
    rng = random.Random(5)
    answers = []
    for number in range(20_000):
        right = sorted(rng.sample(range(30), rng.randint(1, 4)))
        wrong = sorted(rng.sample(range(30), 2))
        names = rng.sample([f"r{n}" for n in range(10)], 2)
        answers += [(f"t{number}", name, str(wrong if rng.random() < 0.15 else right)) for name in names]
    tracemalloc.start()
    found = estimate_reliability(answers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert all(share == pytest.approx(0.87, abs=0.03) for share in found.values())


@pytest.mark.parametrize("labels", ["abc", "".join(chr(200 + n) for n in range(77))], ids=["3 labels", "77 labels"])
def test_of_two_reviewers_alone_neither_is_taken_for_the_truth(labels: str) -> None:
    """Nothing in their answers says who is right where they differ: the mode chose one by chance."""
    for seed in range(8):
        found = estimate_reliability(planted({"ana": 0.9, "ben": 0.9}, 100, seed, labels))
        assert found["ana"] == found["ben"]
        assert 0.8 < found["ana"] < 0.97
    third = estimate_reliability(planted({"ana": 0.95, "ben": 0.6, "cleo": 0.95}, 200, labels=labels))
    assert third["ben"] < 0.75 < third["ana"]
