from __future__ import annotations

import numpy as np

from services.evaluator.rivals.classifiers import TrainingRows, nearest
from services.evaluator.rivals.curve import examples_curve
from services.evaluator.rivals.findings import FLAT


def rows(count: int, noise: float, seed: int = 3, groups: int | None = None) -> tuple[TrainingRows, np.ndarray]:
    """Points around one of 8 centres in 20 dimensions; `noise`: their spread."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(8, 20))
    labels = np.arange(count) % 8
    features = centres[labels] + noise * random.normal(size=(count, 20))
    names = [f"g{n % (groups or count)}" for n in range(count)]
    return TrainingRows([""] * count, [str(label) for label in labels], [1.0] * count, names), features


def test_labels_that_a_few_examples_teach_have_a_flat_curve() -> None:
    curve = examples_curve(*rows(800, noise=0.5))
    assert curve is not None
    assert curve.doubling.high < FLAT
    assert [point.examples for point in curve.points] == [80, 160, 320, 640]


def test_labels_that_need_more_examples_have_a_rising_curve() -> None:
    curve = examples_curve(*rows(160, noise=2.0))
    assert curve is not None
    assert curve.doubling.low > 0.0
    assert curve.points[0].accuracy < curve.points[-1].accuracy - 0.1


def test_copies_of_a_row_are_never_in_both_parts_of_the_cross_validation() -> None:
    """Rows without any signal, each ten times: who sees a copy of what it is asked is always right."""
    features = np.repeat(np.random.default_rng(2).normal(size=(40, 200)), 10, axis=0)
    labels = [str(n // 10 % 8) for n in range(400)]
    train = TrainingRows([""] * 400, labels, [1.0] * 400, [f"g{n // 10}" for n in range(400)])
    curve = examples_curve(train, features)
    assert curve is not None
    assert curve.points[-1].accuracy < 0.4


def test_there_is_no_curve_of_few_rows_of_one_label_or_of_few_groups() -> None:
    few, features = rows(79, noise=0.5)
    assert examples_curve(few, features) is None
    train, features = rows(200, noise=0.5)
    assert examples_curve(TrainingRows(train.texts, ["a"] * 200, train.weights, train.groups), features) is None
    assert examples_curve(*rows(200, noise=0.5, groups=3)) is None


def test_the_most_similar_row_comes_last() -> None:
    vectors = np.eye(4, dtype=np.float32)
    assert nearest(vectors, np.array([[0.1, 0.9, 0.3, 0.0]]), 2) == [[2, 1]]
