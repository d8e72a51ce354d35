"""Accuracy over the number of training rows, by a linear classifier: would more of the same examples help?

An adapter cannot be trained ten times for this, so a classifier stands in for it. The rows are the training set's own,
cross-validated by group, because the held-out rows are too few to tell a difference of two points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from schemas.approaches import CurvePoint, ExamplesCurve
from services.evaluator.rivals.classifiers import TrainingRows, fit
from services.evaluator.rivals.table import mean_difference
from services.evaluator.statistics.intervals import group_numbers

MIN_ROWS = 80
"""There is no curve from fewer."""
_SHARES = (0.125, 0.25, 0.5, 1.0)
_DRAWS = 2
_SEED = 20


def examples_curve(train: TrainingRows, features: Any) -> ExamplesCurve | None:
    """Return the curve; `features` is a matrix with a row for each of `train`'s. None for too few rows, labels or
    groups."""
    rows = len(train.texts)
    folds = 5 if rows <= 1_000 else 3
    if rows < MIN_ROWS or len(set(train.labels)) < 2 or len(set(train.groups)) < folds:
        return None
    labels, weights = np.array(train.labels), np.array(train.weights)
    right = {share: np.zeros(rows) for share in _SHARES}
    sizes = {share: 0 for share in _SHARES}
    random = np.random.default_rng(_SEED)
    for fitted_on, judged in GroupKFold(folds).split(features, labels, train.groups):
        for share in _SHARES:
            draws = _DRAWS if share < 1.0 else 1
            count = max(round(share * len(fitted_on)), 1)
            sizes[share] = max(sizes[share], count)
            for _ in range(draws):
                drawn = random.permutation(fitted_on)[:count]
                answers = _answers(features, labels, weights, drawn, judged)
                right[share][judged] += (answers == labels[judged]) / draws
    points = tuple(CurvePoint(examples=sizes[share], accuracy=float(right[share].mean())) for share in _SHARES)
    gains: Sequence[float] = (right[1.0] - right[0.5]).tolist()
    return ExamplesCurve(points=points, doubling=mean_difference(gains, group_numbers(train.groups)))


def _answers(
    features: Any, labels: NDArray[Any], weights: NDArray[Any], drawn: NDArray[Any], judged: NDArray[Any]
) -> NDArray[Any]:
    """Return a classifier's answers to the rows `judged`; one that saw a single label always answers that."""
    if len(set(labels[drawn])) < 2:
        return np.full(len(judged), labels[drawn][0])
    predicted: NDArray[Any] = fit(features[drawn], labels[drawn], weights[drawn]).predict(features[judged])
    return predicted
