"""Tests and intervals of the difference of two arms on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from schemas.adapters import ScoreDifference
from services.evaluator.statistics.intervals import Floats, Groups, percentiles, resampled

SHOWN = 0.025
"""Of a one-sided test, from which a difference counts as shown: 5 % of equal candidates, on both sides together."""
_LEVEL = 0.005
_FLIPS = 10_000
_FLIPS_AT_ONCE = 1_000
_FLIPS_BELOW = 4
"""A sample is of so many times one over the level, at least."""
_EXACT_GROUPS = 12
"""Up to so many groups that differ, all flips of signs are tried instead of a sample of them."""
_SEED = 20


def mcnemar_worse(lost: int, gained: int) -> float:
    """Return the p-value of "the candidate is not worse" (exact McNemar, one-sided): P(losses >= lost) at even odds."""
    n = lost + gained
    return float(binomtest(lost, n, 0.5, alternative="greater").pvalue) if n else 1.0


def p_worse(difference: Floats, groups: Groups, weights: Floats | None = None, level: float = _LEVEL) -> float:
    """Return the one-sided p-value of "the candidate is not worse". `difference`: its score less production's, by row.

    `level`: what the p-value is held against: it can be shown to be lower.

    If both arms are equally good, each group's difference has either sign with equal chance. So the p-value is the
    share of flips of signs whose sum is not above the one found (Fisher's randomisation test); with equal weights, one
    row a group and rights and wrongs that is McNemar's exact test.
    """
    sums = np.bincount(groups, weights=difference if weights is None else weights * difference)
    sums = sums[np.abs(sums) > 1e-12]
    if not len(sums):
        return 1.0
    sizes = np.abs(sums)
    if np.ptp(sizes) <= 1e-9 * sizes.max():
        lost = int((sums < 0).sum())
        return mcnemar_worse(lost, len(sums) - lost)
    found = float(sums.sum()) + 1e-9 * float(sizes.sum())
    return _share_of_flips(len(sums), lambda flips: flips @ sizes <= found, level)


def p_worse_together(parts: Sequence[tuple[Floats, Groups]], level: float = _LEVEL) -> float:
    """Return the one-sided p-value of "the candidate is worse in none of these parts". A part: the difference of each
    of its rows, and their groups.

    For parts that are too small to be tested one by one. What is summed is the square of what each part loses: gains in
    one part do not make up for losses in another, and losses that gather in few parts count for more than as many that
    are scattered over all of them, as those of two equally good arms are. Signs are flipped by group as in `p_worse`,
    in all parts that a group has rows in at once.
    """
    numbers = np.unique(np.concatenate([groups for _, groups in parts]), return_inverse=True)[1]
    sums, start = np.zeros((int(numbers.max()) + 1, len(parts))), 0
    for column, (apart, groups) in enumerate(parts):
        np.add.at(sums[:, column], numbers[start : start + len(groups)], apart)
        start += len(groups)
    sums = sums[(np.abs(sums) > 1e-12).any(axis=1)]
    sums = sums[:, (np.abs(sums) > 1e-12).any(axis=0)]

    def lost(flips: Floats) -> Floats:
        return np.asarray((np.minimum(flips @ sums, 0.0) ** 2).sum(axis=1), dtype=np.float64)

    found = float(lost(np.ones((1, len(sums))))[0]) * (1.0 - 1e-9)
    return _share_of_flips(len(sums), lambda flips: lost(flips) >= found, level) if found else 1.0


def _share_of_flips(count: int, is_as_bad: Callable[[Floats], NDArray[np.bool_]], level: float) -> float:
    """Return the share of flips of so many signs (flips × signs) that are as bad as what was found.

    Where none of a sample is, and it is too small to show a share below `level`, so many more are drawn that it could.
    The share stays a p-value: that none of the first ones is as bad is as rare as these can show.
    """
    if count <= _EXACT_GROUPS:
        signs = 1.0 - 2.0 * ((np.arange(1 << count)[:, None] >> np.arange(count)) & 1)
        return float(is_as_bad(signs.astype(np.float64)).mean())
    chance, wanted, none_of_first = np.random.default_rng(_SEED), _FLIPS_BELOW / level, True
    found = tried = 0
    while tried < _FLIPS or (tried < wanted and none_of_first):
        flips: Floats = chance.choice((-1.0, 1.0), size=(_FLIPS_AT_ONCE, count))
        found, tried = found + int(is_as_bad(flips).sum()), tried + _FLIPS_AT_ONCE
        none_of_first = none_of_first and (found == 0 or tried > _FLIPS)
    return (1 + found) / (1 + tried)


def difference(
    candidate: Floats, production: Floats, groups: Groups, weights: Floats | None, basis: Literal["rows", "traffic"]
) -> ScoreDifference:
    """Return the mean difference of scores in [0, 1] with its interval (paired bootstrap by group), and a finding.

    A group of -1 and one of 1 are added to the interval's, of the mean size, or with weights as heavy as the heaviest
    one: where no group differs, or none of a few heavy ones, the bootstrap knows no spread of them (Agresti and Min's
    interval, 2005, has such rows, too).
    """
    weighed = np.ones_like(candidate) if weights is None else weights
    apart = candidate - production
    value = max(-1.0, min(1.0, float(weighed @ apart / weighed.sum())))  # It may be rounded to just beyond.
    by_group, last = np.bincount(groups, weights=weighed), int(groups.max())
    added = float(by_group.mean() if weights is None else by_group.max())
    drawn = np.append(groups, [last + 1, last + 2])
    each = np.append(weighed * apart, [added, -added]), np.append(weighed, [added, added])
    sums, sizes = resampled(np.column_stack(each), drawn).T
    low, high = percentiles(np.array(value), sums / sizes)
    worse, better = p_worse(apart, groups, weights), p_worse(-apart, groups, weights)
    return ScoreDifference(
        value=value,
        low=max(-1.0, float(low)),
        high=min(1.0, float(high)),
        n=len(apart),
        basis=basis,
        p_worse=worse,
        p_better=better,
        finding="worse" if worse <= SHOWN else "better" if better <= SHOWN else "not_shown",
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all of them together (Holm 1979), in their order."""
    adjusted = [1.0] * len(p_values)
    greatest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = greatest
    return adjusted


def rows_to_show(level: float) -> int:
    """Return the fewest rows on which a candidate that loses all of them is shown to be worse at this level."""
    return math.ceil(-math.log2(level))
