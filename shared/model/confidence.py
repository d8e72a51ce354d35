"""How sure an answer is, calibrated: what the log-probabilities of its tokens say, mapped to how often it is right.

The task's form of answers measures (`shared.answers`), and the calibration of the adapter that answered maps the score.
Pure, takes microseconds, never raises.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

from schemas.adapters import Calibration, OpinionShare
from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.answers.measure import UNKNOWN, ConfidenceMeasure, Tokens

MAX_LOG_ODDS = 20.0
"""Log-odds are cut at +- this: two in a billion."""
_EXPONENT = 700.0
# A log-probability up to this much above zero is that of a certain token, rounded upstream.
_ROUNDING = 1e-3

Opinion = Callable[[str], float | None]
"""Returns a second opinion's log-odds of a label as the answer; None: it has none."""


def measure(
    spec: TaskSpec, tokens: Tokens | None, calibration: Calibration | None = None, opinion: Opinion | None = None
) -> ConfidenceMeasure:
    """How sure the answer made of `tokens` is; `UNKNOWN` where the upstream reported nothing valid.

    `opinion`: the one that the calibration was fitted with.
    """
    if not tokens:
        return UNKNOWN
    form = answer_form(spec)
    try:
        logprobs = [token["logprob"] for token in tokens]
        total = min(math.fsum(logprobs), 0.0)
        if not (max(logprobs) <= _ROUNDING and total > -math.inf):
            return UNKNOWN
        measured = form.measure(tokens, logprobs, total)
        score = measured.score
        if score is None or not 0.0 <= score <= 1.0:
            return UNKNOWN
        if calibration is None or not form.is_exact:  # Texts are not right or wrong.
            return measured
        share = calibration.opinion
        if opinion is not None and share is not None:
            label = form.spelled_label(tokens)
            score = joint_score(score, None if label is None else opinion(label), share)
        return _calibrated(measured, score, calibration)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError):
        return UNKNOWN


def joint_score(score: float, other: float | None, share: OpinionShare) -> float:
    """Return the score of an answer with a second opinion, of these log-odds.

    None: it has none, say on a label that no training row has. Then the model's counts whole, at its own temperature.
    """
    own = log_odds(score)
    x = own * share.own / share.other if other is None else share.own * own + share.other * other
    return 1.0 / (1.0 + math.exp(min(-x, _EXPONENT)))


def log_odds(score: float) -> float:
    """Return ln(p / (1 - p)), cut at +-MAX_LOG_ODDS."""
    if score <= 0.0:
        return -MAX_LOG_ODDS
    if score >= 1.0:
        return MAX_LOG_ODDS
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, math.log(score) - math.log1p(-score)))


def calibrated(calibration: Calibration, score: float) -> float:
    """Return a score in [0, 1], calibrated. Preserves the order of scores."""
    x = log_odds(score)
    if calibration.kind == "temperature":
        return 1.0 / (1.0 + math.exp(min(-x / calibration.temperature, _EXPONENT)))
    knots = calibration.knots
    index = bisect_right(knots, (x, math.inf))
    if index in (0, len(knots)):
        return knots[min(index, len(knots) - 1)][1]
    (left, low), (right, high) = knots[index - 1], knots[index]
    return low + (high - low) * (x - left) / (right - left)


def _calibrated(measured: ConfidenceMeasure, score: float, calibration: Calibration) -> ConfidenceMeasure:
    """Return what was measured with its calibrated score, and the threshold of low confidence of the map."""
    low = calibration.low_confidence
    return measured._replace(
        score=calibrated(calibration, score), raw=score, calibration=calibration.name,
        threshold=None if low is None else low.calibrated,
    )  # fmt: skip
