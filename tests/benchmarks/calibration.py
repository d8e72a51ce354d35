"""Quality measures of confidence for answers with a score in [0, 1], and the reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from services.evaluator.statistics.confidence import expected_calibration_error
from services.evaluator.statistics.intervals import wilson

BINS = 15
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """Quality measures. `ece`: over 15 bins of equal size; `ece_width`: over 15 of equal width (Guo et al. 2017).

    `auroc`: the probability that an error has a lower score than a right answer. `lowest_tenth`: the share of all
    errors among the tenth of answers with the lowest scores.
    """

    ece: float
    ece_width: float
    auroc: float
    lowest_tenth: float


def figures(scores: Floats, right: Floats) -> Figures:
    """Measure answers with these scores; `right` is 0 or 1. Raises ValueError if none or all are right."""
    errors = 1.0 - right
    lowest = np.argsort(scores, kind="stable")[: max(1, round(len(scores) / 10))]
    return Figures(
        ece=expected_calibration_error(scores, right, BINS),
        ece_width=_ece_of_equal_width(scores, right),
        auroc=float(roc_auc_score(errors, -scores)),
        lowest_tenth=float(errors[lowest].sum() / errors.sum()),
    )


def _ece_of_equal_width(scores: Floats, right: Floats) -> float:
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=scores - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(scores))


def best_possible_lowest_tenth(right: Floats) -> float:
    """Return the largest share of the errors that a tenth of the answers can hold."""
    return min(1.0, max(1, round(len(right) / 10)) / float((1.0 - right).sum()))


def perfect_ece(scores: Floats, seed: int, draws: int = 1_000) -> float:
    """Return the mean error, over bins of equal size, of answers that are right as often as their scores say."""
    outcomes = np.random.default_rng(seed).random((draws, len(scores))) < scores
    return float(np.mean([expected_calibration_error(scores, drawn.astype(float), BINS) for drawn in outcomes]))


def draw(before: Floats, after: Floats, right: Floats, path: Path) -> None:
    """Draw two reliability diagrams: confidence and accuracy (95 % Wilson) in bins of equal size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    grid: Any = figure.subplots(2, 2, sharex=True, height_ratios=(4, 1))
    for column, (title, scores) in enumerate((("before calibration", before), ("after calibration", after))):
        found = figures(scores, right)
        upper, lower = grid[0][column], grid[1][column]
        upper.plot([0, 1], [0, 1], color="#9aa5b1", linestyle="--", linewidth=1)
        for part in np.array_split(np.argsort(scores, kind="stable"), BINS):
            share = wilson(int(right[part].sum()), len(part))
            bars = [[share.value - share.low], [share.high - share.value]]
            upper.errorbar(scores[part].mean(), share.value, yerr=bars, fmt="o", color="#1f7a8c", capsize=3)
        upper.set_title(f"{title}: ECE {found.ece:.3f}, AUROC of errors {found.auroc:.3f}")
        upper.set_ylim(0, 1.02)
        lower.hist([scores[right > 0], scores[right == 0]], bins=30, range=(0, 1), stacked=True,
                   color=["#1f7a8c", "#bf4342"], label=["right", "wrong"])  # fmt: skip
        lower.set_yscale("log")
        lower.set_xlabel("confidence")
    grid[0][0].set_ylabel("share of right answers")
    grid[1][0].set_ylabel("answers")
    grid[1][1].legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
