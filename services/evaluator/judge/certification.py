"""Whether a judge may stop a candidate: its agreement with people who compared the same answers, blind. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import beta

from schemas.evaluation_settings import JudgeSettings
from schemas.judging import Certification
from services.evaluator.judge.pairs import JudgedPair
from services.evaluator.statistics.intervals import wilson

_LEVEL = 0.05
MIN_PAIRS = 50
"""On fewer, even a judge that always agrees with people has a bound that says little."""


def lower_bound(successes: int, n: int) -> float:
    """Return the one-sided lower 95 % bound of a share (Clopper & Pearson 1934); 0 for n = 0."""
    return float(beta.ppf(_LEVEL, successes, n - successes + 1)) if successes else 0.0


def certify(judged: Sequence[JudgedPair], people: Sequence[int], settings: JudgeSettings) -> Certification:
    """Compare verdicts with people's choices: 1 for the first answer, -1 for the second.

    A judge that sees no difference, or another one in the other order, does not agree. Pairs whose requests failed are
    left out: that says nothing of its judgement.
    """
    both = [(found, choice) for found, choice in zip(judged, people, strict=True) if found.preferred is not None]
    agreed = sum(found.preferred == choice for found, choice in both)
    positions = [is_first for found, _ in both for is_first in found.positions]
    return Certification(
        pairs=len(both),
        agreement=wilson(agreed, len(both)) if both else None,
        lower=lower_bound(agreed, len(both)),
        required=settings.min_agreement,
        pairs_required=MIN_PAIRS,
        first_share=wilson(sum(positions), len(positions)) if positions else None,
        consistent=wilson(sum(found.consistent for found, _ in both), len(both)) if both else None,
    )
