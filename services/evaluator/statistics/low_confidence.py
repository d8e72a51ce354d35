"""The confidence up to which answers are to be looked at, so that a wanted share of the errors is found."""

from __future__ import annotations

import numpy as np

from schemas.evaluation import LowConfidence
from services.evaluator.statistics.intervals import Floats


def low_confidence(scores: Floats, right: Floats, weights: Floats, recall: float) -> LowConfidence | None:
    """Return the lowest threshold at or below which a further error lies with at least the probability `recall`.

    A split-conformal quantile of the errors' scores (Vovk et al. 2005; with weights Tibshirani et al. 2019, where the
    further error weighs as much as the heaviest of these): conformal risk control of the share of errors that are
    missed (Angelopoulos et al. 2024). None where the errors are too few: 4 for a recall of 0.8, 19 for 0.95.
    """
    wrong = right == 0.0
    order = np.argsort(scores[wrong], kind="stable")
    errors, counts = scores[wrong][order], weights[wrong][order]
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
