"""What a judge model says of generated texts, and whether it may be believed: a part of `adapters.evaluated`."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Frozen, Identifier, Interval, Probability


class Certification(Frozen):
    """How far a judge agrees with people's own blind comparisons of two answers."""

    pairs: int = Field(ge=0, description="Pairs of which people preferred one answer, and the judge was asked.")
    agreement: Interval | None = Field(
        default=None, description="Share of them in which it prefers, in both orders, the same answer. None: no pairs."
    )
    lower: Probability = Field(default=0.0, description="One-sided lower 95 % bound of it (Clopper and Pearson 1934).")
    required: Probability
    pairs_required: int = Field(ge=1)
    first_share: Interval | None = Field(
        default=None, description="Of its choices, the share that fell on the answer shown first: 0.5 is unbiased."
    )
    consistent: Interval | None = Field(default=None, description="Share of pairs with one verdict in both orders.")

    @property
    def certified(self) -> bool:
        return self.pairs >= self.pairs_required and self.lower >= self.required


class JudgeReport(Frozen):
    """A judge's comparison of candidate and production on the evaluation set, blind and in both orders.

    An answer is preferred if it is in both orders; else the two tie. Unless it is `certified`, it is shown and stops
    nothing.
    """

    model: Identifier
    certified: bool
    certification: Certification
    wins: int = Field(default=0, ge=0, description="Rows on which it prefers the candidate's answer.")
    losses: int = Field(default=0, ge=0)
    ties: int = Field(default=0, ge=0, description="Neither, or another one in the other order.")
    p_worse: Probability | None = Field(
        default=None, description='One-sided p-value of "not worse". None: no row was judged.'
    )
    requests: int = Field(default=0, ge=0, description="Sent, repeated ones included.")
    failed: int = Field(default=0, ge=0, description="Pairs and rows that got no answer.")
    problem: str = Field(default="", max_length=500, description="Why it stopped before all was judged.")
