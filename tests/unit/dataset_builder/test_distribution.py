"""Labels of training rows against audited production."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from schemas.datasets import Origin
from schemas.labels import Purpose
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.checks.distribution import (
    REST,
    audited,
    corrected_psi,
    measure_distribution,
)
from tests.unit.dataset_builder.test_gates import example
from tests.unit.dataset_builder.voting import audits_of, correction


def test_psi_of_identical_data_with_many_classes_is_near_zero() -> None:
    chance = random.Random(20)
    classes = [f"c{i}" for i in range(77)]
    values = [
        corrected_psi(Counter(chance.choices(classes, k=500)), Counter(chance.choices(classes, k=500)))
        for _ in range(20)
    ]
    assert abs(sum(values) / len(values)) < 0.1


def test_psi_without_data_is_zero() -> None:
    assert corrected_psi({}, {"a": 3}) == 0.0


def test_audits_weigh_as_much_as_the_answers_that_they_stand_for() -> None:
    rare = [correction(n, "a", purpose=Purpose.AUDIT, inclusion_probability=0.1) for n in range(10)]
    certain = [correction(100 + n, "b", purpose=Purpose.AUDIT, inclusion_probability=1.0) for n in range(100)]
    suspects = [correction(500 + n, "c") for n in range(100)]
    audits = audited(votes_of([*rare, *certain, *suspects]))
    assert (audits.share(["a"]), audits.share(["b"]), audits.share(["c"]), audits.total) == (0.5, 0.5, 0.0, 110)
    assert audits.effective == pytest.approx(200**2 / (10 * 100 + 100))


def test_two_labels_of_one_audit_count_half_each_and_a_person_s_last_word_counts() -> None:
    votes = votes_of(
        [
            correction(1, "a", "ana", purpose=Purpose.AUDIT),
            correction(1, "b", "ben", purpose=Purpose.AUDIT, minute=1),
            correction(2, "a", "ana", purpose=Purpose.AUDIT),
            correction(2, "c", "ana", purpose=Purpose.AUDIT, minute=1),
        ]
    )
    assert audited(votes).counts == {"a": 0.5, "b": 0.5, "c": 1.0}


def test_an_audit_that_was_asked_about_again_counts_as_it_was_answered_last() -> None:
    """A mistake that its own reviewer had taken back was production's label all the same."""
    votes = votes_of(
        [
            correction(1, "a", "ana", purpose=Purpose.AUDIT, inclusion_probability=0.1),
            correction(1, "b", "ana", purpose=Purpose.SUSPICIOUS_LABEL, minute=1),
            correction(2, "a", "ana", purpose=Purpose.AUDIT, inclusion_probability=0.1),
            correction(2, "b", "ben", purpose=Purpose.TIE_BREAK, minute=1),
            correction(3, "c", "ana", purpose=Purpose.SUSPICIOUS_LABEL, minute=1),
        ]
    )
    audits = audited(votes)
    assert (audits.weights, audits.counts, audits.total) == ({"a": 5.0, "b": 15.0}, {"a": 0.5, "b": 1.5}, 2)


def test_what_a_user_wrote_about_an_audited_answer_is_no_answer_to_the_audit() -> None:
    """Users write about answers that they found wrong, which is no chance."""
    (audit,) = audits_of({"a": 1})
    wrote = replace(audit, label="b", voter="user:u1", origin=Origin.USER, purpose=None, correction_id="u")
    assert audited([audit, wrote]).counts == {"a": 1.0}


def test_weights_decide_what_is_compared() -> None:
    audits = audited(audits_of({"a": 50, "b": 50}))
    skewed = [example(n, "a") for n in range(80)] + [example(100 + n, "b") for n in range(20)]
    weighed = [row.model_copy(update={"weight": 0.5 if row.answer == "a" else 2.0}) for row in skewed]
    far, near = measure_distribution(skewed, audits), measure_distribution(weighed, audits)
    assert far.psi is not None
    assert near.psi is not None
    assert far.psi > 0.25 > 0.1 > near.psi
    assert [(c.label, c.production, c.training) for c in near.classes] == [("a", 0.5, 0.5), ("b", 0.5, 0.5)]


def test_labels_with_few_audits_are_one_class_with_those_that_have_none() -> None:
    audits = audited(audits_of({"a": 50, "b": 9, "c": 1}))
    measured = measure_distribution([example(n, "abcd"[n % 4]) for n in range(40)], audits)
    assert [(c.label, c.audits, c.training) for c in measured.classes] == [("a", 50, 0.25), (REST, 10, 0.75)]


def test_77_labels_that_are_as_frequent_as_in_production_are_no_shift() -> None:
    """The index is 0.27 of such data, of which nearly all is its bias."""
    chance = random.Random(3)
    labels = [f"intent {n}" for n in range(77)]
    train = [example(n, label) for n, label in enumerate(chance.choices(labels, k=700))]
    measured = measure_distribution(train, audited(audits_of(Counter(chance.choices(labels, k=1_200)))))
    assert len(measured.classes) > 60
    assert measured.psi is not None
    assert measured.psi < 0.1
    light = [row.model_copy(update={"weight": 5.0 if n % 20 else 0.2}) for n, row in enumerate(train)]
    assert (measure_distribution(light, audited(audits_of(Counter(chance.choices(labels, k=1_200))))).psi or 0.0) < 0.1


def test_too_few_audits_compare_nothing() -> None:
    measured = measure_distribution([example(1, "a")], audited(audits_of({"a": 20, "b": 9})))
    assert (measured.audits, measured.psi, measured.classes) == (29, None, ())
    spread = audited(audits_of({"a": 9, "b": 9, "c": 9, "d": 9}))
    assert measure_distribution([example(1, "a")], spread).psi is None
    assert measure_distribution([], audited(audits_of({"a": 10}))).psi is None


def test_a_missing_class_is_a_large_difference() -> None:
    audits = audited(audits_of({"a": 50, "b": 50}))
    measured = measure_distribution([example(n, "a") for n in range(100)], audits)
    assert measured.psi is not None
    assert measured.psi > 1.0
