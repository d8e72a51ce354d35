"""Calibration: the map from an adapter's raw confidence to how often it is right (scikit-learn).

Below 1,000 answers, of which near-copies count as one, and answers of different weight as their effective number
(Kish), the map is a temperature (Guo et al. 2017): one number, which divides the log-odds. A prior holds it near 1
while there are few answers: the density of ln T falls from 0 as a normal one, of deviation 0.5 above and 0.25 below,
and T stays within [1/4, 4]. It is stricter below, where T makes answers surer: models are over-confident as a rule, and
nobody looks at an answer that is surer than it should be. From 1,000 answers on it is a centred isotonic regression
(Zadrozny & Elkan 2002; Oron & Flournoy 2017): each of its steps becomes a knot at its mean, with lines between the
knots, so that the map has no plateaus and preserves the order of answers. Of 240 texts with five copies each it would
follow their accidents (simulated: a calibration error of 0.036, that of a temperature is 0.016), and of 1,300 suspects
and 150 audits, each of which stands for fifty times as many answers, those of the few audits (0.034 and 0.024).

Reviewers make mistakes too. A share of the judgements is modelled as mistakes, which make a right answer look wrong
and, of K possible answers, a wrong one look right one time in K - 1, of JSON and calls never. Without it, a few
mistakes among the surest answers would force a high temperature and lower the confidence of all answers (measured on
Banking77 with 5 % mistakes: a calibration error of 0.09 instead of 0.04), and low confidence would be that of most
answers (of 400 simulated ones, 95 % right, with 6 % mistakes, a threshold for 80 % of the errors is above 59 % of the
answers instead of 17 %). The share is estimated together with the temperature; its prior is Beta(1, 19), cut at 0.1.
Mistakes of reviewers cannot be told from a model that is confidently wrong equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from schemas.adapters import Calibration
from schemas.evaluation import Reliability
from schemas.tasks import TaskSpec
from services.evaluator.statistics.confidence import brier, expected_calibration_error, reliability_bins
from services.evaluator.statistics.intervals import Groups
from services.evaluator.statistics.low_confidence import low_confidence
from services.evaluator.statistics.traffic import TrafficSample
from shared.answers import answer_form
from shared.identity import content_hash
from shared.model.confidence import MAX_LOG_ODDS, calibrated, log_odds

MIN_ANSWERS = 20
"""There is no calibration from fewer answers."""
MIN_EFFECTIVE = 100
"""From so many rows of equal weight on, those that stand for all traffic suffice by themselves."""
ISOTONIC_FROM = 1_000
"""Answers of equal weight, to different texts."""
FOLDS = 5
_MAX_KNOTS = 150
_PRIOR_DEVIATION_ABOVE, _PRIOR_DEVIATION_BELOW = 0.5, 0.25
_NARROWNESS_IF_POOLED = 0.5
_MISTAKE_SHARES = np.linspace(0.0, 0.1, 21)
_MISTAKE_PRIOR = 18.0
"""The log prior of a share e of mistakes is this times ln(1 - e)."""
_LOG_TEMPERATURES = np.linspace(-np.log(4.0), np.log(4.0), 201)
_MIN_PROBABILITY = 1e-12
_SCORE_WEIGHT = 1e-3
"""Weight of the score itself in an isotonic map: enough to preserve the order where the map is level."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """A map, and what it was fitted on: raw scores, judgements (1: right), weights, and the scores cross-fitted."""

    calibration: Calibration
    raw: Floats
    judged: Floats
    weights: Floats
    mapped: Floats

    @property
    def reliability(self) -> Reliability:
        """How often answers are right at each confidence, before and after the map."""
        return Reliability(
            before=reliability_bins(self.raw, self.judged, self.weights),
            after=reliability_bins(self.mapped, self.judged, self.weights),
            basis=self.calibration.basis,
        )


def fit(
    adapter: str,
    scores: Sequence[float | None],
    right: Sequence[bool],
    chance: float,
    recall: float,
    traffic: TrafficSample | None = None,
    groups: Groups | None = None,
    *,
    pooled: bool = False,
) -> Fitted | None:
    """Fit the map to raw scores in [0, 1] and whether each answer was judged right.

    `chance`: that a mistake makes a wrong answer look right (`chance_mistake_looks_right`).
    With it comes the threshold at or below which the share `recall` of the errors is expected (`low_confidence`).

    Answers without a score are skipped. `traffic`: the answers that stand for all traffic. Where they suffice the map
    is fitted on them alone, by their weights: suspects are more often wrong at the same score than other answers are.
    `groups`: of the answers; those of one group are to near-copies of one text. None: there are none.
    `pooled`: scores with a second opinion, of which both parts are calibrated: the prior is narrower.
    Returns None for fewer than `MIN_ANSWERS` answers.
    """
    raw = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    judged = np.array(right, dtype=np.float64)
    chosen, weights, by_traffic = chosen_answers(raw, traffic)
    if len(chosen) < MIN_ANSWERS:
        return None
    own = chosen if groups is None else groups[chosen]
    texts, group = np.unique(own, return_inverse=True)
    raw, judged = raw[chosen], judged[chosen]
    enough = min(len(texts), weights.sum()) >= ISOTONIC_FROM
    few = partial(temperature_map, narrowness=_NARROWNESS_IF_POOLED) if pooled else temperature_map
    fit_map = isotonic_map if enough else few
    fields = fit_map(raw, judged, chance, weights)
    mapped = _cross_fitted(raw, judged, fit_map, chance, weights, group)
    calibration = Calibration.model_validate(
        {
            **fields,
            "name": f"{adapter}-{content_hash(repr(fields), length=6)}",
            "answers": len(chosen),
            "ece_before": expected_calibration_error(raw, judged, weights=weights),
            "ece_after": expected_calibration_error(mapped, judged, weights=weights),
            "brier_before": brier(raw, judged, weights),
            "brier_after": brier(mapped, judged, weights),
            "basis": "traffic" if by_traffic else "rows",
        }
    )
    certain = np.array([calibrated(calibration, score) for score in raw])
    believed = probability_wrong(certain, calibration.mistakes, chance)
    if (low := low_confidence(raw, judged, weights, recall, believed)) is not None:
        low = low.model_copy(update={"calibrated": calibrated(calibration, low.threshold)})
    return Fitted(calibration.model_copy(update={"low_confidence": low}), raw, judged, weights, mapped)


def chosen_answers(raw: Floats, traffic: TrafficSample | None) -> tuple[NDArray[np.intp], Floats, bool]:
    """Return which answers the map is fitted on, and what each counts, as so many independent answers in total."""
    known = ~np.isnan(raw)
    if traffic is not None:
        has_score = known[traffic.positions]
        part = TrafficSample(traffic.positions[has_score], traffic.weights[has_score])
        if len(part.positions) and part.effective >= MIN_EFFECTIVE:
            return part.positions, part.weights * (part.effective / part.weights.sum()), True
    every = np.flatnonzero(known)
    return every, np.ones(len(every)), False


FitMap = Callable[[Floats, Floats, float, Floats], dict[str, object]]
"""Fits a map. Takes raw scores, judgements (1: right, 0: wrong), the chance that a mistake makes a wrong answer look
right, and what each answer counts; returns the map's fields of a Calibration."""


def chance_mistake_looks_right(spec: TaskSpec) -> float | None:
    """Return the chance that a reviewer's mistake makes a wrong answer look right: that it names this very answer.

    None of generated texts, which are not right or wrong: their confidence is not calibrated.
    """
    form = answer_form(spec)
    return 1.0 / (form.possible_answers - 1.0) if form.is_exact else None


def probability_judged_right(probability: Floats, mistakes: float, chance: float) -> Floats:
    """Return how often answers that are right with this probability are judged right."""
    return (1.0 - mistakes) * probability + mistakes * chance * (1.0 - probability)


def probability_wrong(probability: Floats, mistakes: float, chance: float) -> Floats:
    """Return how often answers that are judged wrong are wrong, if such answers are right with this probability."""
    judged_wrong = 1.0 - probability_judged_right(probability, mistakes, chance)
    return (1.0 - mistakes * chance) * (1.0 - probability) / np.maximum(judged_wrong, _MIN_PROBABILITY)


def believed_wrong(arms: Sequence[tuple[Floats, Floats]], chance: float) -> list[Floats]:
    """Return of each answer how probable it is that it is wrong if it is judged so, by its score and a temperature.

    Most errors of a good model may be reviewers' mistakes, on which it is rightly sure. `arms`: scores and judgements
    of models that answered the same rows. The mistakes are in the rows' labels, so they are the same for all: the
    fewest that any arm shows, else a model that is as sure of its errors as of what it knows would be excused by them.
    """
    weights = [np.ones_like(scores) for scores, _ in arms]
    fewest = min(
        float(str(temperature_map(*arm, chance, each)["mistakes"])) for arm, each in zip(arms, weights, strict=True)
    )
    found = []
    for (scores, judged), each in zip(arms, weights, strict=True):
        fitted = temperature_map(scores, judged, chance, each, np.array([fewest]))
        odds = np.array([log_odds(score) for score in scores]) / float(str(fitted["temperature"]))
        wrong = probability_wrong(1.0 / (1.0 + np.exp(-odds)), fewest, chance)
        found.append(np.maximum(wrong, _MIN_PROBABILITY))  # All errors of an arm may be as sure as can be.
    return found


def temperature_map(
    scores: Floats,
    right: Floats,
    chance: float,
    weights: Floats,
    mistake_shares: Floats = _MISTAKE_SHARES,
    *,
    narrowness: float = 1.0,
) -> dict[str, object]:
    """Return the posterior mode of the temperature and the posterior mean of the share of mistakes.

    A mean of the temperature would be above 1 without any answer, since the prior is wider there. `mistake_shares`:
    those that there may be. `narrowness`: the prior's deviations are this times as large.
    """
    x = np.array([log_odds(score) for score in scores])
    mapped = 1.0 / (1.0 + np.exp(-np.exp(-_LOG_TEMPERATURES)[:, None] * x))
    deviation = np.where(_LOG_TEMPERATURES > 0, _PRIOR_DEVIATION_ABOVE, _PRIOR_DEVIATION_BELOW)
    prior = -((_LOG_TEMPERATURES / (narrowness * deviation)) ** 2) / 2
    log_posterior = np.empty((len(mistake_shares), len(_LOG_TEMPERATURES)))
    for row, mistakes in enumerate(mistake_shares):
        judged = np.clip(probability_judged_right(mapped, mistakes, chance), _MIN_PROBABILITY, 1.0 - _MIN_PROBABILITY)
        log_posterior[row] = (
            np.where(right > 0, np.log(judged), np.log1p(-judged)) @ weights
            + prior
            + _MISTAKE_PRIOR * np.log1p(-mistakes)
        )
    weight = np.exp(log_posterior - log_posterior.max())
    weight /= weight.sum()
    temperature = float(np.exp(_LOG_TEMPERATURES[weight.sum(axis=0).argmax()]))
    return {
        "kind": "temperature", "temperature": round(temperature, 4),
        "mistakes": round(float(weight.sum(axis=1) @ mistake_shares), 4),
    }  # fmt: skip


def isotonic_map(scores: Floats, right: Floats, chance: float, weights: Floats) -> dict[str, object]:
    """Return knots at the middle of each step of an isotonic regression on log-odds, corrected for mistakes."""
    mistakes = float(str(temperature_map(scores, right, chance, weights)["mistakes"]))
    x = np.array([log_odds(score) for score in scores])
    steps = IsotonicRegression().fit_transform(x, right, sample_weight=weights)
    levels, step = np.unique(steps, return_inverse=True)
    counts = np.bincount(step, weights=weights)
    middles = np.bincount(step, weights=weights * x) / counts
    levels = np.clip((levels - mistakes * chance) / (1.0 - mistakes - mistakes * chance), 0.0, 1.0)
    # A step whose answers were all right, or all wrong, is still not certain.
    levels = np.maximum.accumulate((levels * counts + 0.5) / (counts + 1.0))
    chosen = np.unique(np.linspace(0, len(levels) - 1, _MAX_KNOTS).round().astype(int))
    inner = [(x, y) for x, y in zip(middles[chosen], levels[chosen], strict=True) if -MAX_LOG_ODDS < x < MAX_LOG_ODDS]
    ends = [(-MAX_LOG_ODDS, levels[0]), *inner, (MAX_LOG_ODDS, levels[-1])]
    knots = [(float(x), float((1.0 - _SCORE_WEIGHT) * y + _SCORE_WEIGHT / (1.0 + np.exp(-x)))) for x, y in ends]
    return {"kind": "isotonic", "knots": tuple(knots), "mistakes": mistakes}


def _cross_fitted(
    scores: Floats, right: Floats, fit_map: FitMap, chance: float, weights: Floats, groups: Groups
) -> Floats:
    """Return how often each answer would be judged right by a map fitted without it and its near-copies."""
    folds = groups % FOLDS
    mapped = np.empty_like(scores)
    for fold in range(FOLDS):
        held_out = folds == fold
        fitted = Calibration.model_validate(
            {
                **fit_map(scores[~held_out], right[~held_out], chance, weights[~held_out]),
                "name": "fold",
                "answers": 1,
                "ece_before": 0.0,
                "ece_after": 0.0,
            }
        )
        values = np.array([calibrated(fitted, score) for score in scores[held_out]])
        mapped[held_out] = probability_judged_right(values, fitted.mistakes, chance)
    return mapped
