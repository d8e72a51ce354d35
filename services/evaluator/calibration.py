"""How often an adapter is right when it says how sure it is: the map from the one to the other (scikit-learn).

Below 1,000 answers a temperature (Guo et al. 2017): one number, which divides the log-odds. A prior keeps it near 1
where there is little to go by: ln T is normal with mean 0 and deviation 0.5, and T stays within [1/4, 4]. From 1,000
answers on, isotonic regression (Zadrozny & Elkan 2002), centred (Oron & Flournoy 2017): each of its steps is a knot at
its mean, with lines between them, so that it has no plateaus and keeps the order of answers.

People judge wrongly too: of the judgements a share is taken to be mistakes, which make a right answer look wrong and,
of K labels, a wrong one look right one time in K - 1. Without it a few mistakes among the surest answers, which no
temperature can explain but a high one, would take the confidence of all (measured on Banking77 with 5 % of mistakes:
an error of calibration of 0.09 instead of 0.04). The share is estimated with the temperature; its prior is Beta(1, 19),
cut at 0.1. What it cannot tell apart: a model that is surest where it is wrong, in so many answers, from its judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from schemas.adapters import Calibration
from shared.identity import content_hash
from shared.model.confidence import LIMIT, calibrated, log_odds

LEAST = 20
"""Fewer answers make no map."""
ISOTONIC_FROM = 1_000
BINS = 15
FOLDS = 5
_MOST_KNOTS = 150
_PRIOR_DEVIATION = 0.5
_MISTAKES = np.linspace(0.0, 0.1, 21)
_RARE = 18.0
"""ln of the prior of a share e of mistakes: this times ln(1 - e)."""
_LOG_TEMPERATURES = np.linspace(-np.log(4.0), np.log(4.0), 201)
_SMALLEST = 1e-12
_TIE = 1e-3
"""Weight of the score itself in an isotonic map: enough to keep the order on a level stretch."""

Floats = NDArray[np.float64]


def fit(adapter: str, scores: Sequence[float | None], right: Sequence[bool], labels: int) -> Calibration | None:
    """The map for answers with these raw scores in [0, 1], and whether each was judged right; of so many labels.

    Answers without a score are left out. None where fewer than `LEAST` are left.
    """
    pairs = [(score, is_right) for score, is_right in zip(scores, right, strict=True) if score is not None]
    if len(pairs) < LEAST:
        return None
    raw = np.array([score for score, _ in pairs])
    hits = np.array([is_right for _, is_right in pairs], dtype=np.float64)
    make = temperature_map if len(pairs) < ISOTONIC_FROM else isotonic_map
    chance = 1.0 / (labels - 1)
    fields = make(raw, hits, chance)
    name = f"{adapter}-{content_hash(repr(fields), length=6)}"
    before = expected_calibration_error(raw, hits)
    after = expected_calibration_error(_cross_fitted(raw, hits, make, chance), hits)
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


Make = Callable[[Floats, Floats, float], dict[str, object]]
"""Raw scores, hits (0 or 1), and how often a mistake makes a wrong answer a hit, to the fields that are the map."""


def judged(probability: Floats, mistakes: float, chance: float) -> Floats:
    """How often answers that are right with this probability are judged right."""
    return (1.0 - mistakes) * probability + mistakes * chance * (1.0 - probability)


def temperature_map(scores: Floats, right: Floats, chance: float) -> dict[str, object]:
    """Temperature (its logarithm) and share of mistakes: their means after these answers."""
    x = np.array([log_odds(score) for score in scores])
    honest = 1.0 / (1.0 + np.exp(-np.exp(-_LOG_TEMPERATURES)[:, None] * x))
    prior = -((_LOG_TEMPERATURES / _PRIOR_DEVIATION) ** 2) / 2
    likely = np.empty((len(_MISTAKES), len(_LOG_TEMPERATURES)))
    for row, mistakes in enumerate(_MISTAKES):
        hit = np.clip(judged(honest, mistakes, chance), _SMALLEST, 1.0 - _SMALLEST)
        likely[row] = np.where(right > 0, np.log(hit), np.log1p(-hit)).sum(axis=1) + prior + _RARE * np.log1p(-mistakes)
    weight = np.exp(likely - likely.max())
    weight /= weight.sum()
    temperature = float(np.exp(weight.sum(axis=0) @ _LOG_TEMPERATURES))
    return {
        "kind": "temperature", "temperature": round(temperature, 4),
        "mistakes": round(float(weight.sum(axis=1) @ _MISTAKES), 4),
    }  # fmt: skip


def isotonic_map(scores: Floats, right: Floats, chance: float) -> dict[str, object]:
    """Knots at the middle of each step of the isotonic regression on log-odds, less what mistakes make of it."""
    mistakes = float(str(temperature_map(scores, right, chance)["mistakes"]))
    x = np.array([log_odds(score) for score in scores])
    steps = IsotonicRegression().fit_transform(x, right)
    levels, step, counts = np.unique(steps, return_inverse=True, return_counts=True)
    middles = np.bincount(step, weights=x) / counts
    levels = np.clip((levels - mistakes * chance) / (1.0 - mistakes - mistakes * chance), 0.0, 1.0)
    # A step that was always right, or never, is not certain of it.
    levels = np.maximum.accumulate((levels * counts + 0.5) / (counts + 1.0))
    kept = np.unique(np.linspace(0, len(levels) - 1, _MOST_KNOTS).round().astype(int))
    inner = [(x, y) for x, y in zip(middles[kept], levels[kept], strict=True) if -LIMIT < x < LIMIT]
    ends = [(-LIMIT, levels[0]), *inner, (LIMIT, levels[-1])]
    knots = [(float(x), float((1.0 - _TIE) * y + _TIE / (1.0 + np.exp(-x)))) for x, y in ends]
    return {"kind": "isotonic", "knots": tuple(knots), "mistakes": mistakes}


def _cross_fitted(scores: Floats, right: Floats, make: Make, chance: float) -> Floats:
    """How often each answer would be judged right, by a fit that has not seen it."""
    folds = np.arange(len(scores)) % FOLDS
    mapped = np.empty_like(scores)
    for fold in range(FOLDS):
        out = folds == fold
        map_ = Calibration.model_validate(
            {
                **make(scores[~out], right[~out], chance),
                "name": "fold",
                "answers": 1,
                "ece_before": 0.0,
                "ece_after": 0.0,
            }
        )
        honest = np.array([calibrated(map_, score) for score in scores[out]])
        mapped[out] = judged(honest, map_.mistakes, chance)
    return mapped
