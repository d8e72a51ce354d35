"""Exact intervals and p-values of what a build measures. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import betainc, betaincinv


@dataclass(frozen=True)
class Estimate:
    """A value with its two-sided 95 % interval."""

    value: float
    low: float
    high: float


def proportion(successes: float, n: float) -> Estimate:
    """Return a proportion with the exact interval of Clopper & Pearson (1934).

    `n` is above 0. Weighted counts need not be whole: they are those of the effective sample (Korn & Graubard 1998).
    """
    return Estimate(
        round(successes / n, 4), round(_lower_bound(successes, n, 0.975), 4), round(upper_bound(successes, n, 0.975), 4)
    )


def upper_bound(successes: float, n: float, level: float = 0.95) -> float:
    """Return the exact one-sided upper bound of a proportion: with this confidence the true one is not above it."""
    return 1.0 if successes >= n else float(betaincinv(successes + 1, n - successes, level))


def _lower_bound(successes: float, n: float, level: float) -> float:
    return 0.0 if successes <= 0 else float(betaincinv(successes, n - successes + 1, 1.0 - level))


def binomial_tail(successes: int, n: int, p: float) -> float:
    """Return the probability of at least so many successes in n trials of probability p."""
    return 1.0 if successes <= 0 else float(betainc(successes, n - successes + 1, p))
