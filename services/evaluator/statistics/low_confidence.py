"""The confidence up to which answers are to be looked at, so that a wanted share of the errors is found."""

from __future__ import annotations

import numpy as np

from schemas.adapters import LowConfidence
from services.evaluator.statistics.intervals import Floats


def low_confidence(
    scores: Floats, right: Floats, weights: Floats, recall: float, believed: Floats | None = None
) -> LowConfidence | None:
    """Return the lowest threshold at or below which a further error lies with at least the probability `recall`.

    Conformal risk control (Angelopoulos et al. 2024, https://arxiv.org/abs/2208.02814, theorem 1). An error of score s
    that is not looked at, s > t, is a loss of 1; the risk is to be at most a = 1 - recall. With the share R(t) of the
    n errors that are missed, and B = 1 the most that a further one may lose,

        t = inf {t : n / (n + 1) * R(t) + B / (n + 1) <= a}

    which is the ceil((n + 1) * recall)-th smallest of the errors' scores (Vovk et al. 2005). If the errors and the
    further one are exchangeable its expected loss is at most a, and at least a - 1 / (n + 1) where no two scores are
    equal. With `weights` the further error weighs as much as the heaviest of these (Tibshirani et al. 2019). None where
    the errors are too few, n < recall / (1 - recall): 4 are needed for a recall of 0.8, 19 for 0.95.

    `scores`, `right` (1: right, 0: wrong) and `weights`: of all answers, in one order. `believed`: how probable it is
    that an answer which is judged wrong is wrong, by which it weighs less; None: all of them are. Reviewers' mistakes
    are spread like right answers, so a few would put the threshold where most answers are.
    """
    wrong = right == 0.0
    order = np.argsort(scores[wrong], kind="stable")
    errors, counts = scores[wrong][order], (weights if believed is None else weights * believed)[wrong][order]
    if not len(errors):
        return None
    found = np.cumsum(counts) / (counts.sum() + counts.max())
    reached = np.flatnonzero(found >= recall - 1e-12)
    if not len(reached):
        return None
    threshold = float(errors[reached[0]])
    return LowConfidence(
        threshold=threshold,
        recall=recall,
        flagged=min(1.0, float(weights[scores <= threshold].sum() / weights.sum())),
        errors=len(errors),
    )
