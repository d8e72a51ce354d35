"""How often an adapter is right when it says how sure it is: the map from the one to the other (scikit-learn).

Below 1,000 answers a temperature (Guo et al. 2017): one number, which divides the log-odds. A prior keeps it near 1
where there is little to go by: ln T is normal with mean 0 and deviation 0.5, and T stays within [1/4, 4]. From 1,000
answers on, isotonic regression (Zadrozny & Elkan 2002), centred (Oron & Flournoy 2017): each of its steps is a knot at
its mean, with lines between them, so that it has no plateaus and keeps the order of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from schemas.adapters import Calibration
from shared.confidence import LIMIT, calibrated, log_odds
from shared.identity import content_hash

LEAST = 20
"""Fewer answers make no map."""
ISOTONIC_FROM = 1_000
BINS = 15
FOLDS = 5
_MOST_KNOTS = 150
_PRIOR_DEVIATION = 0.5
_LOG_TEMPERATURES = np.linspace(-np.log(4.0), np.log(4.0), 401)
_TIE = 1e-3
"""Weight of the score itself in an isotonic map: enough to keep the order on a level stretch."""

Floats = NDArray[np.float64]


def fit(adapter: str, scores: Sequence[float | None], right: Sequence[bool]) -> Calibration | None:
    """The map for answers with these raw scores in [0, 1], and whether each was right.

    Answers without a score are left out. None where fewer than `LEAST` are left.
    """
    pairs = [(score, is_right) for score, is_right in zip(scores, right, strict=True) if score is not None]
    if len(pairs) < LEAST:
        return None
    raw = np.array([score for score, _ in pairs])
    hits = np.array([is_right for _, is_right in pairs], dtype=np.float64)
    make = temperature_map if len(pairs) < ISOTONIC_FROM else isotonic_map
    fields = make(raw, hits)
    name = f"{adapter}-{content_hash(repr(fields), length=6)}"
    before = expected_calibration_error(raw, hits)
    after = expected_calibration_error(_cross_fitted(raw, hits, make), hits)
    return Calibration.model_validate(
        {**fields, "name": name, "answers": len(pairs), "ece_before": before, "ece_after": after}
    )


def expected_calibration_error(scores: Floats, right: Floats, bins: int = BINS) -> float:
    """Mean distance of how sure and how often right, over bins that hold equally many answers (Nguyen & O'Connor 2015).

    In [0, 1]. Never 0 by chance alone: bins of n answers scatter by about sqrt(p (1 - p) / n).
    """
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(part) * abs(scores[part].mean() - right[part].mean()) for part in parts) / len(scores))


Make = Callable[[Floats, Floats], dict[str, object]]
"""Raw scores and hits (0 or 1) to the fields of a Calibration that are its map."""


def temperature_map(scores: Floats, right: Floats) -> dict[str, object]:
    """The most probable temperature, by its prior and these answers."""
    x = np.array([log_odds(score) for score in scores]) * np.where(right > 0, 1.0, -1.0)
    slopes = np.exp(-_LOG_TEMPERATURES)
    loss = np.logaddexp(0.0, -slopes[:, None] * x).sum(axis=1) + (_LOG_TEMPERATURES / _PRIOR_DEVIATION) ** 2 / 2
    return {"kind": "temperature", "temperature": round(float(np.exp(_LOG_TEMPERATURES[loss.argmin()])), 4)}


def isotonic_map(scores: Floats, right: Floats) -> dict[str, object]:
    """Knots at the middle of each step of the isotonic regression on log-odds."""
    x = np.array([log_odds(score) for score in scores])
    steps = IsotonicRegression().fit_transform(x, right)
    levels, step, counts = np.unique(steps, return_inverse=True, return_counts=True)
    middles = np.bincount(step, weights=x) / counts
    # A step that was always right, or never, is not certain of it.
    levels = np.maximum.accumulate((levels * counts + 0.5) / (counts + 1.0))
    kept = np.unique(np.linspace(0, len(levels) - 1, _MOST_KNOTS).round().astype(int))
    inner = [(x, y) for x, y in zip(middles[kept], levels[kept], strict=True) if -LIMIT < x < LIMIT]
    ends = [(-LIMIT, levels[0]), *inner, (LIMIT, levels[-1])]
    knots = [(float(x), float((1.0 - _TIE) * y + _TIE / (1.0 + np.exp(-x)))) for x, y in ends]
    return {"kind": "isotonic", "knots": tuple(knots)}


def _cross_fitted(scores: Floats, right: Floats, make: Make) -> Floats:
    """Each answer mapped by a fit that has not seen it."""
    folds = np.arange(len(scores)) % FOLDS
    mapped = np.empty_like(scores)
    for fold in range(FOLDS):
        out = folds == fold
        map_ = Calibration.model_validate(
            {**make(scores[~out], right[~out]), "name": "fold", "answers": 1, "ece_before": 0.0, "ece_after": 0.0}
        )
        mapped[out] = [calibrated(map_, score) for score in scores[out]]
    return mapped
